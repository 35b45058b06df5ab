//! Regular files and block devices.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{Advice, SeekFrom, fadvise, fstatfs, seek};

use super::error::Error;
use super::flush::{FlushWitness, Flusher};
use super::geometry::Geometry;
use super::kind::Kind;
use super::nowait::{Nowait, NowaitIo};
use super::transfer::{IOV_MAX, retry, transfer};
use super::written_back::WrittenBack;
use super::zero::{self, Missing};
use super::{Limits, OpenOptions, bounce};
use crate::io::IoVecs;
use crate::sys::{self, block_device, vectored};

/// A raw disk image, or a block device.
///
/// Every operation transfers its whole range or fails, and then may have transferred a part. Ranges are checked:
/// beyond [`size`](Self::size), or not a multiple of [`Limits::request_alignment`], is `InvalidInput` and nothing is
/// done, so a file never grows.
#[derive(Debug)]
pub struct RawFile {
    file: File,
    path: PathBuf,
    kind: Kind,
    limits: Limits,
    direct: bool,
    /// Bytes. Atomic, because a disk may be resized while it is served.
    size: AtomicU64,
    missing: Missing,
    nowait: NowaitIo,
    flusher: Flusher,
    /// Present where failed writebacks can be noticed without taking the kernel's report.
    written_back: Option<WrittenBack>,
    /// A process before this one may have taken the kernel's report of a failed writeback, and told nobody.
    doubtful: AtomicBool,
    /// An [`ImageLock`](super::ImageLock) of this open file exists.
    locked: Arc<AtomicBool>,
}

impl RawFile {
    /// Opens a regular file or a block device.
    ///
    /// On a writable regular file this asks for a hole behind its end, to see whether holes are supported; that changes
    /// no data.
    ///
    /// # Errors
    /// See [`enum@Error`].
    pub fn open(options: &OpenOptions) -> Result<Self, Error> {
        // Looked at before it is opened: opening a FIFO blocks, and opening some devices has effects.
        let meta = fs::metadata(&options.path).map_err(|e| options.open_error(e))?;
        Kind::of(&meta, &options.path)?;
        let file = open_file(options)?;
        let meta = file.metadata().map_err(|e| options.query_error("type", e))?;
        let kind = Kind::of(&meta, &options.path)?;
        if kind == Kind::BlockDevice
            && !options.read_only
            && block_device::is_read_only(&file).unwrap_or(false)
        {
            return Err(options.open_error(io::Error::from_raw_os_error(libc::EROFS)));
        }
        let geometry = Geometry::of(&file, &meta, kind, options)?;
        Ok(Self {
            nowait: NowaitIo::of(&file, options.direct),
            written_back: match options.direct || options.read_only {
                true => None,
                false => WrittenBack::open(&file, kind),
            },
            doubtful: AtomicBool::new(false),
            file,
            path: options.path.clone(),
            kind,
            limits: geometry.limits,
            direct: options.direct,
            size: AtomicU64::new(geometry.size),
            missing: Missing::default(),
            flusher: Flusher::new(!options.direct, !options.direct && kind == Kind::BlockDevice),
            locked: Arc::default(),
        })
    }

    /// The file that the bytes are in, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes on the disk: a positive multiple of the logical block size.
    pub fn size(&self) -> u64 {
        // Relaxed: a number on its own; the kernel has the last word on where the file ends.
        self.size.load(Ordering::Relaxed)
    }

    /// Looks at the size again, because the file or the device may have grown or shrunk, and returns it. Any thread.
    ///
    /// What is behind the last whole logical block is left out.
    ///
    /// # Errors
    /// The size cannot be had, or not one block is left; the old one stays.
    pub fn refresh_size(&self) -> io::Result<u64> {
        let bytes = self.bytes()?;
        let size = bytes - bytes % u64::from(self.limits.logical_block_size);
        if size == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "no whole block is left",
            ));
        }
        self.size.store(size, Ordering::Relaxed);
        Ok(size)
    }

    /// What the kernel says of the size.
    fn bytes(&self) -> io::Result<u64> {
        match self.kind {
            Kind::Regular => Ok(self.file.metadata()?.len()),
            Kind::BlockDevice => block_device::size(&self.file),
        }
    }

    /// What it can do.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) fn lock_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.locked)
    }

    /// True for a read (or `write`) that the kernel may get as it is: it is allowed, lies on the disk, and the buffers
    /// are such as the kernel takes. What is refused here has to go through the operations below.
    pub fn takes_as_is(&self, iov: &IoVecs, offset: u64, write: bool) -> bool {
        let len = iov.len() as u64;
        let allowed = if write {
            self.check_write(offset, len)
        } else {
            self.check_range(offset, len)
        };
        allowed.is_ok() && !iov.is_empty() && iov.as_slice().len() <= IOV_MAX && !self.needs_bounce(iov)
    }

    fn needs_bounce(&self, iov: &IoVecs) -> bool {
        !iov.is_aligned(
            self.limits.memory_alignment as usize,
            self.limits.request_alignment as usize,
        )
    }

    /// Fills `iov` from `offset` on.
    ///
    /// # Errors
    /// `InvalidInput` for a range that is not on the disk; `UnexpectedEof` if the file was cut short meanwhile; errors
    /// of `preadv`.
    pub fn readv(&self, iov: &IoVecs, offset: u64) -> io::Result<()> {
        self.check_range(offset, iov.len() as u64)?;
        let read = |iov: &[libc::iovec], at| vectored::preadv(&self.file, iov, at);
        if self.needs_bounce(iov) {
            return bounce::read(iov, offset, self.bounce_alignment(), read);
        }
        transfer(iov.as_slice(), offset, io::ErrorKind::UnexpectedEof, read)
    }

    /// Fills `iov` from `offset` on, a piece at a time, with zeroes where nothing can be read.
    ///
    /// # Errors
    /// EFAULT if the memory of `iov` is gone.
    pub fn salvage(&self, iov: &IoVecs, offset: u64) -> io::Result<()> {
        let read = |iov: &[libc::iovec], at| match self.check_range(at, 0) {
            Ok(()) => vectored::preadv(&self.file, iov, at),
            Err(error) => Err(error),
        };
        bounce::salvage(iov, offset, self.bounce_alignment(), read)
    }

    /// Writes `iov` at `offset`. Stable after the next [`flush`](Self::flush).
    ///
    /// # Errors
    /// EROFS on read-only storage; `InvalidInput` for a range that is not on the disk; errors of `pwritev`.
    pub fn writev(&self, iov: &IoVecs, offset: u64) -> io::Result<()> {
        self.check_write(offset, iov.len() as u64)?;
        self.write(iov, offset, vectored::pwritev)
    }

    /// Writes `iov` at `offset` and returns when it is stable.
    ///
    /// # Errors
    /// Those of [`writev`](Self::writev) and [`flush`](Self::flush).
    pub fn writev_durable(&self, iov: &IoVecs, offset: u64) -> io::Result<()> {
        self.check_write(offset, iov.len() as u64)?;
        if self.direct {
            match self.write(iov, offset, vectored::pwritev_dsync) {
                Err(e) if zero::is_unsupported(&e) => {}
                result => return result,
            }
        }
        // Through the page cache one flush serves all writers that wait for one, where RWF_DSYNC would be a flush each;
        // and only the flusher may learn of failed writebacks, because the kernel reports each of them once.
        self.write(iov, offset, vectored::pwritev)?;
        self.flush()
    }

    fn write(
        &self,
        iov: &IoVecs,
        offset: u64,
        pwritev: impl Fn(&File, &[libc::iovec], u64) -> io::Result<usize>,
    ) -> io::Result<()> {
        let write = |iov: &[libc::iovec], at| pwritev(&self.file, iov, at);
        if self.needs_bounce(iov) {
            return bounce::write(iov, offset, self.bounce_alignment(), write);
        }
        transfer(iov.as_slice(), offset, io::ErrorKind::WriteZero, write)
    }

    /// True if only one write at a time makes progress: file systems lock a regular file for each write through the
    /// page cache.
    pub fn writes_take_turns(&self) -> bool {
        self.kind == Kind::Regular && !self.direct
    }

    /// Whether it is worth to try without waiting.
    pub fn nowait(&self) -> Nowait {
        self.nowait.kind()
    }

    /// [`readv`](Self::readv), if that takes no waiting and succeeds. If not, returns false; `readv` then says why.
    pub fn try_readv(&self, iov: &IoVecs, offset: u64) -> bool {
        self.check_range(offset, iov.len() as u64).is_ok() && self.nowait.read(&self.file, iov, offset)
    }

    /// [`writev`](Self::writev), if that takes no waiting and succeeds. If not, returns false and may have written a
    /// part.
    pub fn try_writev(&self, iov: &IoVecs, offset: u64) -> bool {
        self.check_write(offset, iov.len() as u64).is_ok() && self.nowait.write(&self.file, iov, offset)
    }

    /// Makes stable all writes, discards and zeroes that completed before this call. Callers that wait at the same time
    /// share one flush.
    ///
    /// # Errors
    /// Those of `fdatasync`. Without O_DIRECT a failure is final: the kernel may have dropped the data that it could not
    /// write, so every later flush fails too, until the storage is opened anew.
    pub fn flush(&self) -> io::Result<()> {
        self.flush_after_look(self.kind == Kind::BlockDevice)
    }

    /// As [`flush`](Self::flush), while nothing is being written. The kernel's report of a failed write is left for
    /// whoever opens the file later, if possible.
    ///
    /// # Errors
    /// Those of [`flush`](Self::flush).
    pub fn flush_at_rest(&self) -> io::Result<()> {
        self.flush_after_look(true)
    }

    fn flush_after_look(&self, look: bool) -> io::Result<()> {
        let written_back = self.written_back.as_ref().filter(|_| look);
        let look = || written_back.map_or(Ok(()), |written_back| written_back.wait(self.size()));
        let take = || sys::file::take_writeback_error(&self.file);
        self.flusher.flush(look, take, || {
            self.dispel_doubt()?;
            retry(|| self.file.sync_data())
        })
    }

    /// True once every flush fails, because an earlier one did.
    pub fn flushes_fail(&self) -> bool {
        self.flusher.is_over()
    }

    /// True if the last flush failed: what was written before it may be lost.
    pub fn last_flush_failed(&self) -> bool {
        self.flusher.has_failed()
    }

    /// Has every flush fail from here on: another process knows that data was lost.
    pub fn fail_flushes(&self) {
        self.flusher.give_up(libc::EIO);
    }

    /// Has a witness remember what becomes of flushes through the page cache. It learns at once if they have failed for
    /// good.
    pub fn set_flush_witness(&self, witness: Option<Arc<dyn FlushWitness>>) {
        self.flusher.set_witness(witness);
    }

    /// A process that is gone began a flush, and nobody knows how it ended.
    ///
    /// The next flush of a file syncs its whole file system, which knows if anything was lost there, and fails then.
    /// Returns false where nothing can tell (block devices).
    pub fn doubt_last_flush(&self) -> bool {
        let can_be_dispelled = self.kind == Kind::Regular;
        // Relaxed: the flush that it concerns is asked for later, by way of a ring that starts.
        self.doubtful.store(can_be_dispelled, Ordering::Relaxed);
        can_be_dispelled
    }

    /// The file's own report may have been taken, but that of its file system was not: whoever asks for that asks here.
    fn dispel_doubt(&self) -> io::Result<()> {
        // Relaxed: one flush runs at a time.
        if !self.doubtful.load(Ordering::Relaxed) {
            return Ok(());
        }
        let synced = retry(|| sys::file::sync_file_system(&self.file));
        if let Err(error) = &synced {
            // Reported once, and not to be forgotten.
            self.flusher.give_up(error.raw_os_error().unwrap_or(libc::EIO));
        }
        self.doubtful.store(false, Ordering::Relaxed);
        synced
    }

    /// Another process has had the image, maybe on another host: drops what this host has cached and not changed, and
    /// reads the size again. Returns whether it is another one.
    ///
    /// # Errors
    /// The cache cannot be dropped, or the size not be used.
    pub fn look_anew(&self) -> io::Result<bool> {
        let before = self.size();
        let shared = self.kind == Kind::BlockDevice || !host_only(&self.file);
        if shared && !self.direct {
            // What is dirty stays.
            fadvise(&self.file, 0, None, Advice::DontNeed)?;
        }
        // A file of this host that has become shorter was cut by mistake: what is missing fails, until it is written again.
        if shared || self.bytes()? > before {
            self.refresh_size()?;
        }
        Ok(self.size() != before)
    }

    /// Gives up the contents of a range, if the storage can; success without effect if not.
    ///
    /// A regular file reads zero there afterwards, if it has holes at all; a block device what it likes.
    ///
    /// # Errors
    /// As [`writev`](Self::writev).
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_write(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        let block = u64::from(self.limits.logical_block_size);
        self.missing.discard(&self.file, self.kind, block, offset, len)
    }

    /// Makes a range read zero. With `may_unmap` its space is given back where that leaves zeroes; without it stays
    /// allocated, or becomes so, where the storage can tell.
    ///
    /// # Errors
    /// As [`writev`](Self::writev).
    pub fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        self.check_write(offset, len)?;
        let (mut from, end) = (offset, offset + len);
        if len == 0 {
            return Ok(());
        }
        if self.missing.zero(&self.file, offset, len, may_unmap)? {
            if self.kind == Kind::BlockDevice || self.end_of_file()? >= end {
                return Ok(());
            }
            // The file was cut short, and what lies behind its end cannot be read: its last block extends it.
            from = end - len.min(self.limits.logical_block_size.into());
        }
        zero::write_zeroes(from, end - from, |iov, at| self.write(iov, at, vectored::pwritev))
    }

    /// Returns the number of bytes of a regular file. A worker may not ask for a file's status, which takes a path as
    /// well; and nobody uses the position.
    fn end_of_file(&self) -> io::Result<u64> {
        Ok(seek(&self.file, SeekFrom::End(0))?)
    }

    fn bounce_alignment(&self) -> usize {
        self.limits.memory_alignment.max(self.limits.request_alignment) as usize
    }

    fn check_write(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.limits.read_only {
            return Err(io::Error::from_raw_os_error(libc::EROFS));
        }
        self.check_range(offset, len)?;
        if let Some(written_back) = &self.written_back {
            written_back.touch(offset, len);
        }
        Ok(())
    }

    fn check_range(&self, offset: u64, len: u64) -> io::Result<()> {
        if offset.checked_add(len).is_none_or(|end| end > self.size()) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "beyond the end of the disk",
            ));
        }
        if (offset | len) & (u64::from(self.limits.request_alignment) - 1) != 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a multiple of the block size",
            ));
        }
        Ok(())
    }
}

impl AsFd for RawFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Whether a file is on a file system that only this host can use, so that its cache is always right.
fn host_only(file: &File) -> bool {
    /// ext2, ext3 and ext4; XFS; Btrfs; tmpfs; F2FS; bcachefs; ZFS; overlayfs: their `f_type` in `statfs`.
    const MAGIC: [u32; 8] = [
        0xef53,
        0x5846_5342,
        0x9123_683e,
        0x0102_1994,
        0xf2f5_2010,
        0xca45_1a4e,
        0x2fc1_2fc1,
        0x794c_7630,
    ];
    fstatfs(file).is_ok_and(|stat| MAGIC.iter().any(|known| i64::from(*known) == stat.f_type))
}

fn open_file(options: &OpenOptions) -> Result<File, Error> {
    let flags = if options.direct { libc::O_DIRECT } else { 0 };
    fs::OpenOptions::new()
        .read(true)
        .write(!options.read_only)
        .custom_flags(flags)
        .open(&options.path)
        .map_err(|e| match e.raw_os_error() {
            // What O_DIRECT gets from a file system without it.
            Some(libc::EINVAL) if options.direct => options.direct_error(e),
            _ => options.open_error(e),
        })
}
