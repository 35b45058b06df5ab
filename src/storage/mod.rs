//! Raw files and block devices: bytes and scatter-gather lists, never sectors or status bytes.
//!
//! All operations block, unless they are called `try_`, and may be called from any thread, by several at once.

mod bounce;
mod direct;
mod error;
mod file;
mod flush;
mod format;
mod geometry;
mod kind;
mod lock;
mod nowait;
mod transfer;
mod written_back;
mod zero;

use std::fs::File;
use std::io;
use std::path::PathBuf;

pub use error::Error;
pub use file::RawFile;
pub use flush::FlushWitness;
pub use format::foreign_format;
pub use lock::{ImageLock, LockError};
pub use nowait::Nowait;

use crate::advice;
/// What to open and how.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// A regular file or a block device.
    pub path: PathBuf,
    /// Open it for reading only, and refuse writes.
    pub read_only: bool,
    /// Bypass the page cache (O_DIRECT).
    pub direct: bool,
    /// Bytes of a logical block: a power of two from 512 to 32768, not less than the storage can address. The default is
    /// the least possible: 512 for a file, the device's own for a block device, with `direct` the alignment that it asks
    /// for. Most guests take nothing larger than their page size (4096).
    pub logical_block_size: Option<u32>,
}

impl OpenOptions {
    fn open_error(&self, source: io::Error) -> Error {
        let path = self.path.clone();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Error::Missing {
                why: advice::missing(&path),
                path,
            },
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                if !self.read_only && File::open(&path).is_ok() =>
            {
                Error::NotWritable {
                    why: advice::not_writable(&path, &source),
                    path,
                    source,
                }
            }
            io::ErrorKind::PermissionDenied => Error::Denied {
                why: advice::denied(&path),
                path,
                source,
            },
            _ => Error::Open { path, source },
        }
    }

    fn query_error(&self, what: &'static str, source: io::Error) -> Error {
        let path = self.path.clone();
        Error::Query { path, what, source }
    }

    fn direct_error(&self, source: io::Error) -> Error {
        let path = self.path.clone();
        Error::Direct { path, source }
    }
}

/// What the storage can do and what it asks of requests. All figures are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Unit of addressing and of atomicity that the device announces: power of two, at least 512.
    pub logical_block_size: u32,
    /// Physical block size: power of two, a multiple of the logical one.
    pub physical_block_size: u32,
    /// Best request size, 0 if unknown.
    pub optimal_io_size: u32,
    /// Offsets and lengths must be a multiple of this, a power of two (with O_DIRECT often 512 or 4096, else 1). Never
    /// larger than the logical block size.
    pub request_alignment: u32,
    /// Buffer addresses must be a multiple of this, a power of two, and the length of each buffer one of
    /// `request_alignment`, or they are bounced.
    pub memory_alignment: u32,
    /// Discard is supported and deallocates in this granularity; 0: not supported.
    pub discard_granularity: u32,
    /// Write zeroes is worth offering.
    pub write_zeroes: bool,
    /// Writes are refused.
    pub read_only: bool,
}
