//! The driver's side of a disk, for tests, benchmarks and fuzz targets.
//!
//! Everything is written byte by byte, so that a test can also get it wrong. It shares no code with the daemon: a mistake
//! in one of them does not hide the same mistake in the other. A failure panics, since a test wants nothing else.

#![allow(missing_docs, reason = "many names say it all")]

pub mod blk;
pub mod memory;
pub mod ring;
