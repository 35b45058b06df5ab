//! Storage: bytes and scatter-gather lists, never sectors or status bytes.
//!
//! All operations block and may be called from any thread, by several at once.

use std::io;

use crate::iov::IoVecs;

/// What the storage can do and what it asks of requests. All figures are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Unit of addressing and of atomicity that the device announces: power of two, at least 512.
    pub logical_block_size: u32,
    /// Physical block size: power of two, a multiple of the logical one.
    pub physical_block_size: u32,
    /// Best request size, 0 if unknown.
    pub optimal_io_size: u32,
    /// Offsets and lengths must be a multiple of this (512 or more with O_DIRECT, else 1).
    pub request_alignment: u32,
    /// Buffer addresses and lengths must be a multiple of this, or they are bounced (1: any).
    pub memory_alignment: u32,
    /// Discard is supported and deallocates in this granularity; 0: not supported.
    pub discard_granularity: u32,
    /// Write zeroes is worth offering.
    pub write_zeroes: bool,
    /// Writes are refused.
    pub read_only: bool,
}

/// A disk's bytes (to become an enum over the closed set of kinds).
#[derive(Debug)]
pub struct Storage {}

#[allow(clippy::missing_errors_doc, missing_docs, unused_variables)]
impl Storage {
    pub fn size(&self) -> u64 {
        unimplemented!()
    }
    pub fn limits(&self) -> &Limits {
        unimplemented!()
    }
    pub fn readv(&self, iov: &IoVecs, offset: u64) -> io::Result<()> {
        unimplemented!()
    }
    pub fn writev(&self, iov: &IoVecs, offset: u64) -> io::Result<()> {
        unimplemented!()
    }
    pub fn flush(&self) -> io::Result<()> {
        unimplemented!()
    }
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        unimplemented!()
    }
    pub fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        unimplemented!()
    }
}
