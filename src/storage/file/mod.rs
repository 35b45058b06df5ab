//! Regular files and block devices.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::error::Error;
use super::flush::Flusher;
use super::geometry::Geometry;
use super::kind::Kind;
use super::limits::Limits;
use super::lock_bytes::LockPlace;
use super::nowait::NowaitIo;
use super::options::OpenOptions;
use super::written_back::WrittenBack;
use super::zero::Missing;
use crate::sys::block_device;

mod format_writes;
mod parts;
mod size;
mod stable;
mod transfers;

pub use format_writes::Gathered;

/// A raw disk image, or a block device.
///
/// Every operation transfers its whole range, or fails after it has perhaps transferred a part. A range past the
/// [`size`](Self::size), or that is not a multiple of [`Limits::request_alignment`], fails with `InvalidInput` and has
/// no effect. So a file never grows.
#[derive(Debug)]
pub struct RawFile {
    file: File,
    path: PathBuf,
    /// The file's device and inode numbers; of a block device its own number instead.
    identity: (u64, u64),
    kind: Kind,
    limits: Limits,
    direct: bool,
    /// Size in bytes. Atomic, because a disk may be resized while it is served.
    size: AtomicU64,
    missing: Missing,
    nowait: NowaitIo,
    flusher: Flusher,
    /// Held while a part of a block is changed with O_DIRECT.
    patching: Mutex<()>,
    /// The check for failed writebacks that leaves the kernel's report in place, if it is possible.
    written_back: Option<WrittenBack>,
    /// A predecessor may have taken the kernel's report of a failed writeback without answering a flush.
    doubtful: AtomicBool,
    /// An [`ImageLock`](super::ImageLock) of this open file, if there is one.
    lock_place: Arc<LockPlace>,
    /// Flushes are executed, not ignored.
    flushes: bool,
    /// Discards free space, and zeroes may be written as holes.
    unmap: bool,
    /// The image is locked while it is in use.
    locks: bool,
    /// There need not be a whole block.
    may_be_empty: bool,
}

impl RawFile {
    /// Opens a regular file or a block device.
    ///
    /// On a writable regular file this punches a hole past the end, to find out whether holes are supported. That
    /// changes no data.
    ///
    /// # Errors
    /// See [`enum@Error`].
    pub fn open(options: &OpenOptions) -> Result<Self, Error> {
        // Checked before it is opened: opening a FIFO blocks, and opening some devices has side effects.
        let meta = fs::metadata(&options.path).map_err(|e| options.open_error(e))?;
        Kind::of(&meta, &options.path)?;
        Self::with_file(open_file(options)?, None, options)
    }

    /// As [`open`](Self::open), with a file that is open already and may have other flags. `direct` is the same file, open
    /// for O_DIRECT, if this process cannot open it.
    ///
    /// # Errors
    /// See [`enum@Error`].
    pub fn from_file(file: File, direct: Option<File>, options: &OpenOptions) -> Result<Self, Error> {
        let mut flags = fcntl_getfl(&file).map_err(|e| options.query_error("flags", e.into()))?;
        // With O_APPEND every write goes to the end of the file, wherever it belongs.
        if flags.contains(OFlags::APPEND) {
            flags.remove(OFlags::APPEND);
            fcntl_setfl(&file, flags).map_err(|e| options.open_error(e.into()))?;
        }
        flags.set(OFlags::DIRECT, options.direct);
        fcntl_setfl(&file, flags).map_err(|e| options.direct_error(e.into()))?;
        Self::with_file(file, direct, options)
    }

    fn with_file(file: File, direct: Option<File>, options: &OpenOptions) -> Result<Self, Error> {
        let meta = file.metadata().map_err(|e| options.query_error("type", e))?;
        let kind = Kind::of(&meta, &options.path)?;
        if kind == Kind::BlockDevice
            && !options.read_only
            && block_device::is_read_only(&file).unwrap_or(false)
        {
            return Err(options.open_error(io::Error::from_raw_os_error(libc::EROFS)));
        }
        let geometry = Geometry::of(&file, &meta, kind, options)?;
        let mut nowait = NowaitIo::of(&file, kind, options.direct);
        if options.map {
            nowait.map(&file, geometry.size);
        }
        Ok(Self {
            nowait,
            written_back: match options.direct || options.read_only {
                true => None,
                false => direct
                    .map(|direct| WrittenBack::through(direct, kind))
                    .or_else(|| WrittenBack::open(&file, kind)),
            },
            doubtful: AtomicBool::new(false),
            file,
            path: options.path.clone(),
            identity: match kind {
                Kind::BlockDevice => (meta.rdev(), 0),
                _ => (meta.dev(), meta.ino()),
            },
            kind,
            limits: geometry.limits,
            direct: options.direct,
            size: AtomicU64::new(geometry.size),
            missing: Missing::default(),
            flusher: Flusher::new(!options.direct, !options.direct && kind == Kind::BlockDevice),
            patching: Mutex::default(),
            lock_place: Arc::default(),
            flushes: !options.no_flush,
            unmap: options.unmap,
            locks: options.locking,
            may_be_empty: options.content.may_end_anywhere(),
        })
    }

    /// Returns the image's path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the disk's properties and requirements.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) fn lock_place(&self) -> &Arc<LockPlace> {
        &self.lock_place
    }

    /// Returns whether both are open files of the same file or block device.
    pub fn is_same_image(&self, other: &Self) -> bool {
        self.identity == other.identity
    }

    /// Returns the same file, open for O_DIRECT, if there is one.
    pub fn sibling(&self) -> Option<BorrowedFd<'_>> {
        self.written_back.as_ref().map(WrittenBack::file)
    }

    /// Returns whether this is a block device.
    pub fn is_device(&self) -> bool {
        self.kind == Kind::BlockDevice
    }

    /// Returns whether this and `other` are the same image, and both lock it.
    pub fn is_twin(&self, other: &Self) -> bool {
        self.locks && other.locks && self.identity == other.identity
    }

    /// Returns whether the image must be locked while it is in use.
    pub fn locks(&self) -> bool {
        self.locks
    }
}

impl AsFd for RawFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn open_file(options: &OpenOptions) -> Result<File, Error> {
    let flags = if options.direct { libc::O_DIRECT } else { 0 };
    fs::OpenOptions::new()
        .read(true)
        .write(!options.read_only)
        .custom_flags(flags)
        .open(&options.path)
        .map_err(|e| match e.raw_os_error() {
            // The answer of a file system without O_DIRECT.
            Some(libc::EINVAL) if options.direct => options.direct_error(e),
            _ => options.open_error(e),
        })
}
