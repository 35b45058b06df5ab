//! The qcow2 format, versions 2 and 3: what the bytes of an image mean. No I/O happens here.
//!
//! Names are those of the specification (`docs/interop/qcow2.txt` of QEMU). Everything in an image is untrusted: each
//! size has a bound, and each offset is checked before it is used. A [`Header`] says where the tables are. [`L1Entry`]
//! and [`Slice`] say where the data of a guest offset is, as an [`Extent`]. [`decompress`] reads compressed clusters.

mod cluster;
mod compressed;
mod error;
mod extension;
mod header;
mod l1;
mod l2;
mod refcount;
mod snapshot;

pub use cluster::ClusterSize;
pub use compressed::{CompressedCluster, CompressionType, decompress};
pub use error::{Corruption, HeaderError};
pub use extension::{BackingFormat, Extensions};
pub use header::{Field, HEADER_MAX, Header, MAGIC};
pub use l1::L1Entry;
pub use l2::{Entry, Extent, Place, Reference, Slice, SliceLayout, Target};
pub use refcount::{RefcountWidth, Refcounts};
pub use snapshot::SnapshotEntry;
