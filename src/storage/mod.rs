//! Storage: bytes and scatter-gather lists, never sectors or status bytes.
//!
//! All operations block, unless they are called `try_`, and may be called from any thread, by several at once.

mod bounce;
mod direct;
mod error;
mod file;
mod flush;
mod format;
mod geometry;
mod lock;
mod nowait;
mod null;
mod short;
mod sys;
mod transfer;
mod written_back;
mod zero;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use error::Error;
pub use file::RawFile;
pub use flush::FlushWitness;
pub use format::foreign_format;
pub use lock::{ImageLock, LockError};
pub use nowait::Nowait;
pub use null::NullStorage;

use crate::advice;
use crate::io::IoVecs;

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

/// A disk's bytes.
///
/// Every operation transfers its whole range or fails, and then may have transferred a part. Ranges are checked:
/// beyond [`size`](Self::size), or not a multiple of [`Limits::request_alignment`], is `InvalidInput` and nothing is
/// done, so a file never grows.
#[derive(Debug)]
#[non_exhaustive]
pub enum Storage {
    /// A regular file or a block device.
    File(RawFile),
    /// Nothing behind it.
    Null(NullStorage),
}

impl Storage {
    /// Opens a regular file or a block device.
    ///
    /// On a writable regular file this asks for a hole behind its end, to see whether holes are supported; that changes
    /// no data.
    ///
    /// # Errors
    /// See [`enum@Error`].
    pub fn open(options: &OpenOptions) -> Result<Self, Error> {
        Ok(Self::File(RawFile::open(options)?))
    }

    /// A disk of `size` bytes (a positive multiple of 512) that stores nothing.
    pub fn null(size: u64) -> Self {
        Self::Null(NullStorage::new(size))
    }

    /// The file that the bytes are in, for messages.
    pub fn path(&self) -> &Path {
        match self {
            Self::File(file) => file.path(),
            Self::Null(_) => Path::new("null"),
        }
    }

    /// Bytes on the disk: a positive multiple of the logical block size.
    pub fn size(&self) -> u64 {
        match self {
            Self::File(file) => file.size(),
            Self::Null(null) => null.size(),
        }
    }

    /// Looks at the size again, because the file or the device may have grown or shrunk, and returns it. Any thread.
    ///
    /// What is behind the last whole logical block is left out.
    ///
    /// # Errors
    /// The size cannot be had, or not one block is left; the old one stays.
    pub fn refresh_size(&self) -> io::Result<u64> {
        match self {
            Self::File(file) => file.refresh_size(),
            Self::Null(null) => Ok(null.size()),
        }
    }

    /// What it can do.
    pub fn limits(&self) -> &Limits {
        match self {
            Self::File(file) => file.limits(),
            Self::Null(null) => null.limits(),
        }
    }

    /// The open file, for engines that submit requests to the kernel themselves; `None` if there is none.
    ///
    /// They submit what [`Self::takes_as_is`], and resume short transfers.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::File(file) => Some(file.as_fd()),
            Self::Null(_) => None,
        }
    }

    /// True for a read (or `write`) that the kernel may get as it is: it is allowed, lies on the disk, and the buffers
    /// are such as the kernel takes. What is refused here has to go through the operations below.
    pub fn takes_as_is(&self, iov: &IoVecs, offset: u64, write: bool) -> bool {
        match self {
            Self::File(file) => file.takes_as_is(iov, offset, write),
            Self::Null(_) => true,
        }
    }

    /// True if only one write at a time makes progress: file systems lock a regular file for each write through the
    /// page cache.
    pub fn writes_take_turns(&self) -> bool {
        match self {
            Self::File(file) => file.writes_take_turns(),
            Self::Null(_) => false,
        }
    }

    /// Whether it is worth to try without waiting.
    pub fn nowait(&self) -> Nowait {
        match self {
            Self::File(file) => file.nowait(),
            Self::Null(_) => Nowait::Memory,
        }
    }

    /// [`readv`](Self::readv), if that takes no waiting and succeeds. If not, returns false; `readv` then says why.
    pub fn try_readv(&self, iov: &IoVecs, offset: u64) -> bool {
        match self {
            Self::File(file) => file.try_readv(iov, offset),
            Self::Null(_) => true,
        }
    }

    /// [`writev`](Self::writev), if that takes no waiting and succeeds. If not, returns false and may have written a
    /// part.
    pub fn try_writev(&self, iov: &IoVecs, offset: u64) -> bool {
        match self {
            Self::File(file) => file.try_writev(iov, offset),
            Self::Null(_) => true,
        }
    }

    /// Fills `iov` from `offset` on.
    ///
    /// # Errors
    /// `InvalidInput` for a range that is not on the disk; `UnexpectedEof` if the file was cut short meanwhile; errors
    /// of `preadv`.
    pub fn readv(&self, iov: &IoVecs, offset: u64) -> io::Result<()> {
        match self {
            Self::File(file) => file.readv(iov, offset),
            Self::Null(_) => Ok(()),
        }
    }

    /// Fills `iov` from `offset` on, a piece at a time, with zeroes where nothing can be read; `allowed(offset, bytes)`
    /// may declare a piece unreadable.
    ///
    /// # Errors
    /// EFAULT if the memory of `iov` is gone.
    pub fn salvage(
        &self,
        iov: &IoVecs,
        offset: u64,
        allowed: impl FnMut(u64, u64) -> bool,
    ) -> io::Result<()> {
        match self {
            Self::File(file) => file.salvage(iov, offset, allowed),
            Self::Null(_) => Ok(()),
        }
    }

    /// [`readv`](Self::readv) or [`writev`](Self::writev) as if the kernel did only half of it at a time.
    ///
    /// # Errors
    /// Theirs.
    pub fn transfer_in_halves(&self, iov: &IoVecs, offset: u64, write: bool) -> io::Result<()> {
        match self {
            Self::File(file) => file.transfer_in_halves(iov, offset, write),
            Self::Null(_) => Ok(()),
        }
    }

    /// Writes the first half of `iov` at `offset`, and no more.
    ///
    /// # Errors
    /// Those of [`writev`](Self::writev).
    pub fn write_half(&self, iov: &IoVecs, offset: u64) -> io::Result<()> {
        match self {
            Self::File(file) => file.write_half(iov, offset),
            Self::Null(_) => Ok(()),
        }
    }

    /// Writes `iov` at `offset`. Stable after the next [`flush`](Self::flush).
    ///
    /// # Errors
    /// EROFS on read-only storage; `InvalidInput` for a range that is not on the disk; errors of `pwritev`.
    pub fn writev(&self, iov: &IoVecs, offset: u64) -> io::Result<()> {
        match self {
            Self::File(file) => file.writev(iov, offset),
            Self::Null(_) => Ok(()),
        }
    }

    /// Writes `iov` at `offset` and returns when it is stable.
    ///
    /// # Errors
    /// Those of [`writev`](Self::writev) and [`flush`](Self::flush).
    pub fn writev_durable(&self, iov: &IoVecs, offset: u64) -> io::Result<()> {
        match self {
            Self::File(file) => file.writev_durable(iov, offset),
            Self::Null(_) => Ok(()),
        }
    }

    /// Makes stable all writes, discards and zeroes that completed before this call. Callers that wait at the same time
    /// share one flush.
    ///
    /// # Errors
    /// Those of `fdatasync`. Without O_DIRECT a failure is final: the kernel may have dropped the data that it could not
    /// write, so every later flush fails too, until the storage is opened anew.
    pub fn flush(&self) -> io::Result<()> {
        match self {
            Self::File(file) => file.flush(),
            Self::Null(_) => Ok(()),
        }
    }

    /// As [`flush`](Self::flush), while nothing is being written. The kernel's report of a failed write is left for
    /// whoever opens the file later, if possible.
    ///
    /// # Errors
    /// Those of [`flush`](Self::flush).
    pub fn flush_at_rest(&self) -> io::Result<()> {
        match self {
            Self::File(file) => file.flush_at_rest(),
            Self::Null(_) => Ok(()),
        }
    }

    /// True once every flush fails, because an earlier one did.
    pub fn flushes_fail(&self) -> bool {
        match self {
            Self::File(file) => file.flushes_fail(),
            Self::Null(_) => false,
        }
    }

    /// True if the last flush failed: what was written before it may be lost.
    pub fn last_flush_failed(&self) -> bool {
        match self {
            Self::File(file) => file.last_flush_failed(),
            Self::Null(_) => false,
        }
    }

    /// Has every flush fail from here on: another process knows that data was lost.
    pub fn fail_flushes(&self) {
        match self {
            Self::File(file) => file.fail_flushes(),
            Self::Null(_) => {}
        }
    }

    /// Has a witness remember what becomes of flushes through the page cache. It learns at once if they have failed for
    /// good.
    pub fn set_flush_witness(&self, witness: Option<Arc<dyn FlushWitness>>) {
        match self {
            Self::File(file) => file.set_flush_witness(witness),
            Self::Null(_) => {}
        }
    }

    /// A process that is gone began a flush, and nobody knows how it ended.
    ///
    /// The next flush of a file syncs its whole file system, which knows if anything was lost there, and fails then.
    /// Returns false where nothing can tell (block devices).
    pub fn doubt_last_flush(&self) -> bool {
        match self {
            Self::File(file) => file.doubt_last_flush(),
            Self::Null(_) => true,
        }
    }

    /// Another process has had the image, maybe on another host: drops what this host has cached and not changed, and
    /// reads the size again. Returns whether it is another one.
    ///
    /// # Errors
    /// The cache cannot be dropped, or the size not be used.
    pub fn look_anew(&self) -> io::Result<bool> {
        match self {
            Self::File(file) => file.look_anew(),
            Self::Null(_) => Ok(false),
        }
    }

    /// Gives up the contents of a range, if the storage can; success without effect if not.
    ///
    /// A regular file reads zero there afterwards, if it has holes at all; a block device what it likes.
    ///
    /// # Errors
    /// As [`writev`](Self::writev).
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        match self {
            Self::File(file) => file.discard(offset, len),
            Self::Null(_) => Ok(()),
        }
    }

    /// Makes a range read zero. With `may_unmap` its space is given back where that leaves zeroes; without it stays
    /// allocated, or becomes so, where the storage can tell.
    ///
    /// # Errors
    /// As [`writev`](Self::writev).
    pub fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        match self {
            Self::File(file) => file.write_zeroes(offset, len, may_unmap),
            Self::Null(_) => Ok(()),
        }
    }
}
