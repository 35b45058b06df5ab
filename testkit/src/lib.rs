//! The driver's side of a disk, for tests, benchmarks and fuzz targets.
//!
//! Everything is written byte by byte, so that a test can also write invalid bytes. This crate shares no code with the
//! daemon, so a mistake in one of them does not hide the same mistake in the other. A failure panics, which fails the
//! test.

#![allow(missing_docs, reason = "many names say it all")]

pub mod allocations;
pub mod blk;
#[cfg(feature = "daemon")]
pub mod ceph;
#[cfg(feature = "tls")]
pub mod certificates;
#[cfg(feature = "daemon")]
pub mod daemon;
#[cfg(feature = "daemon")]
pub mod frontend;
#[cfg(feature = "daemon")]
pub mod full;
#[cfg(feature = "daemon")]
pub mod fuse;
#[cfg(feature = "daemon")]
pub mod guest;
#[cfg(feature = "daemon")]
pub mod holdings;
pub mod inflight;
#[cfg(feature = "daemon")]
pub mod kills;
#[cfg(feature = "daemon")]
pub mod loop_device;
#[cfg(feature = "daemon")]
pub mod machine;
pub mod memory;
pub mod message;
#[cfg(feature = "daemon")]
pub mod metrics;
#[cfg(feature = "daemon")]
pub mod model;
#[cfg(feature = "daemon")]
pub mod nbd;
#[cfg(feature = "daemon")]
pub mod neighbour;
#[cfg(feature = "daemon")]
pub mod preload;
#[cfg(feature = "daemon")]
pub mod process;
#[cfg(feature = "daemon")]
pub mod qmp;
pub mod random;
pub mod raw;
pub mod ring;
pub mod skip;
#[cfg(feature = "daemon")]
pub mod target;
#[cfg(feature = "daemon")]
pub mod tracer;
#[cfg(feature = "daemon")]
pub mod vm;
#[cfg(feature = "words")]
pub mod words;
#[cfg(feature = "daemon")]
pub mod writes;

/// The root of the repository.
#[cfg(feature = "daemon")]
pub(crate) const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
