//! Disks in qcow2 images.
//!
//! A [`Qcow2Disk`] has the files of an image, and leads to its backing files. [`Tables`](tables::Tables) are what is in
//! memory of one image: the header, the L1 table, a cache of slices of L2 tables and a few decompressed clusters. The
//! IOThread executes reads whose tables and data are in memory; workers do the rest with blocking calls.

mod allocation;
mod attempts;
mod cache;
mod cache_options;
mod channel;
mod claims;
mod clusters;
mod disk;
mod error;
mod execute;
mod flush;
mod marks;
mod open;
mod read;
mod read_whole;
mod refcounts;
mod repair;
mod resize;
mod state;
mod tables;
mod write;
mod zeroes;

pub use cache_options::CacheOptions;
pub(super) use channel::Qcow2Channel;
pub use disk::Qcow2Disk;
pub use error::OpenError;
pub use open::{BackingOption, Qcow2Options};

#[cfg(test)]
mod tests;
