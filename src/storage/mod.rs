//! Raw files and block devices. This module knows bytes and scatter-gather lists, but no sectors and no status bytes.
//!
//! Operations block, except those named `try_...`. Any number of threads may call them at the same time.

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
use std::path::{Path, PathBuf};

pub use error::Error;
pub use file::RawFile;
pub use flush::FlushWitness;
pub use format::foreign_format;
pub use lock::{ImageLock, LockError};
pub use nowait::Nowait;

use crate::advice;
/// The image to open, and the mode of access.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// A regular file or a block device.
    pub path: PathBuf,
    /// Open the image for reading only, and refuse writes.
    pub read_only: bool,
    /// Bypass the page cache (O_DIRECT).
    pub direct: bool,
    /// Logical block size in bytes: a power of two from 512 to 32768, and at least the unit that the storage can
    /// address. The default is the smallest possible size: 512 for a file, the device's own for a block device, and
    /// with `direct` at least the alignment that O_DIRECT requires. Most guests accept at most their page size (4096).
    pub logical_block_size: Option<u32>,
    /// Ignore flushes: after a crash of the host, anything may be lost.
    pub no_flush: bool,
    /// Let discards free space, and write zeroes as holes where that is allowed; without it, discards have no effect.
    pub unmap: bool,
    /// Lock the image while it is in use.
    pub locking: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            read_only: false,
            direct: false,
            logical_block_size: None,
            no_flush: false,
            unmap: true,
            locking: true,
        }
    }
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

/// The storage's properties, and its requirements for requests. All sizes are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Unit of addressing and of atomicity that the device announces: a power of two, at least 512.
    pub logical_block_size: u32,
    /// Physical block size: a power of two, and a multiple of the logical block size.
    pub physical_block_size: u32,
    /// Best request size, or 0 if unknown.
    pub optimal_io_size: u32,
    /// Power of two of which offsets and lengths must be multiples (with O_DIRECT often 512 or 4096, else 1). At most
    /// the logical block size.
    pub request_alignment: u32,
    /// Power of two. A buffer goes through a bounce buffer unless its address is a multiple of this and its length a
    /// multiple of `request_alignment`.
    pub memory_alignment: u32,
    /// Granularity in which a discard deallocates, or 0 if discards are not supported.
    pub discard_granularity: u32,
    /// Write-zeroes is worth offering to the guest.
    pub write_zeroes: bool,
    /// Writes are refused.
    pub read_only: bool,
}

impl Limits {
    /// Returns the limits of a disk with larger logical blocks on the same storage, `size` bytes at `path`.
    ///
    /// # Errors
    /// The block size is not possible, or `size` is not a multiple of it.
    pub fn with_logical_block_size(self, block: u32, size: u64, path: &Path) -> Result<Self, Error> {
        let path = || path.to_owned();
        if !block.is_power_of_two() || !(geometry::SECTOR..=geometry::BLOCK_MAX).contains(&block) {
            return Err(Error::BlockSize { size: block });
        }
        if block < self.logical_block_size {
            return Err(Error::BlockSizeTooSmall {
                path: path(),
                size: block,
                least: self.logical_block_size,
                reason: "its storage needs multiples",
            });
        }
        if !size.is_multiple_of(block.into()) {
            return Err(Error::FileSize {
                path: path(),
                size,
                block,
            });
        }
        Ok(Self {
            logical_block_size: block,
            physical_block_size: self.physical_block_size.max(block),
            ..self
        })
    }

    /// Returns the limits of a disk that does not write to its storage.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self {
            discard_granularity: 0,
            write_zeroes: false,
            read_only: true,
            ..self
        }
    }
}
