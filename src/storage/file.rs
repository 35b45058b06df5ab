//! Regular files and block devices.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{Advice, OFlags, SeekFrom, fadvise, fcntl_getfl, fcntl_setfl, fstatfs, seek};

use super::error::Error;
use super::flush::{FlushWitness, Flusher};
use super::geometry::Geometry;
use super::kind::Kind;
use super::lock::LockPlace;
use super::nowait::{Nowait, NowaitIo};
use super::transfer::{IOV_MAX, retry, transfer};
use super::written_back::WrittenBack;
use super::zero::{self, Missing};
use super::{Limits, OpenOptions, bounce};
use crate::io::IoVecs;
use crate::sys::{self, block_device, vectored};

/// A raw disk image, or a block device.
///
/// Every operation transfers its whole range, or fails after it has perhaps transferred a part. A range past the
/// [`size`](Self::size), or that is not a multiple of [`Limits::request_alignment`], fails with `InvalidInput` and has
/// no effect. So a file never grows.
#[derive(Debug)]
pub struct RawFile {
    file: File,
    path: PathBuf,
    kind: Kind,
    limits: Limits,
    direct: bool,
    /// Size in bytes. Atomic, because a disk may be resized while it is served.
    size: AtomicU64,
    missing: Missing,
    nowait: NowaitIo,
    flusher: Flusher,
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
        Self::with_file(open_file(options)?, options)
    }

    /// As [`open`](Self::open), with a file that is open already and may have other flags.
    ///
    /// # Errors
    /// See [`enum@Error`].
    pub fn from_file(file: File, options: &OpenOptions) -> Result<Self, Error> {
        let mut flags = fcntl_getfl(&file).map_err(|e| options.query_error("flags", e.into()))?;
        flags.set(OFlags::DIRECT, options.direct);
        fcntl_setfl(&file, flags).map_err(|e| options.direct_error(e.into()))?;
        Self::with_file(file, options)
    }

    fn with_file(file: File, options: &OpenOptions) -> Result<Self, Error> {
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
            lock_place: Arc::default(),
            flushes: !options.no_flush,
            unmap: options.unmap,
            locks: options.locking,
        })
    }

    /// Returns the image's path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the size in bytes, a positive multiple of the logical block size.
    pub fn size(&self) -> u64 {
        // Relaxed: no other data depends on this number, and the kernel checks the end of the file itself.
        self.size.load(Ordering::Relaxed)
    }

    /// Reads the size again, and returns it rounded down to whole logical blocks. Any thread.
    ///
    /// # Errors
    /// The size cannot be read, or no whole block is left. The old size stays.
    pub fn refresh_size(&self) -> io::Result<u64> {
        let bytes = self.bytes()?;
        let size = bytes - bytes % u64::from(self.limits.logical_block_size);
        if size == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the image has no whole block left",
            ));
        }
        self.size.store(size, Ordering::Relaxed);
        Ok(size)
    }

    /// Makes the file `bytes` long, and the disk with it. Any thread; the file system may take its time to shrink it.
    ///
    /// # Errors
    /// The disk is read-only or a block device, or would not have whole blocks, or there is no room.
    pub fn resize(&self, bytes: u64) -> io::Result<()> {
        let refused = |kind, why| Err(io::Error::new(kind, why));
        if self.limits.read_only {
            return refused(io::ErrorKind::PermissionDenied, "the image is read-only");
        }
        if self.kind == Kind::BlockDevice {
            return refused(
                io::ErrorKind::Unsupported,
                "a block device has a size of its own: change that, then send SIGHUP",
            );
        }
        if bytes == 0 || !bytes.is_multiple_of(self.limits.logical_block_size.into()) {
            return refused(
                io::ErrorKind::InvalidInput,
                "the new size is not a multiple of the logical block size",
            );
        }
        self.file.set_len(bytes)?;
        self.refresh_size().map(drop)
    }

    /// Returns the current size in bytes.
    fn bytes(&self) -> io::Result<u64> {
        match self.kind {
            Kind::Regular => Ok(self.file.metadata()?.len()),
            Kind::BlockDevice => block_device::size(&self.file),
        }
    }

    /// Returns the disk's properties and requirements.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) fn lock_place(&self) -> &Arc<LockPlace> {
        &self.lock_place
    }

    /// Returns whether this is a block device.
    pub fn is_device(&self) -> bool {
        self.kind == Kind::BlockDevice
    }

    /// Returns whether the image must be locked while it is in use.
    pub fn locks(&self) -> bool {
        self.locks
    }

    /// Returns whether a read (or `write`) can be passed to the kernel unchanged: it is allowed, its range is on the
    /// disk, and its buffers are suitable. All other requests must go through the operations below.
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
    /// The range is not on the disk (`InvalidInput`), the file was truncated (`UnexpectedEof`), or `preadv` failed.
    pub fn readv(&self, iov: &IoVecs, offset: u64) -> io::Result<()> {
        self.check_range(offset, iov.len() as u64)?;
        let read = |iov: &[libc::iovec], at| vectored::preadv(&self.file, iov, at);
        if self.needs_bounce(iov) {
            return bounce::read(iov, offset, self.bounce_alignment(), read);
        }
        transfer(iov.as_slice(), offset, io::ErrorKind::UnexpectedEof, read)
    }

    /// Fills `iov` from `offset` on in pieces, with zeroes in place of the data that cannot be read.
    ///
    /// # Errors
    /// EFAULT: the memory of `iov` is lost.
    pub fn salvage(&self, iov: &IoVecs, offset: u64) -> io::Result<()> {
        let read = |iov: &[libc::iovec], at| match self.check_range(at, 0) {
            Ok(()) => vectored::preadv(&self.file, iov, at),
            Err(error) => Err(error),
        };
        bounce::salvage(iov, offset, self.bounce_alignment(), read)
    }

    /// Writes `iov` at `offset`. The data is stable after the next [`flush`](Self::flush).
    ///
    /// # Errors
    /// The storage is read-only (EROFS), the range is not on the disk (`InvalidInput`), or `pwritev` failed.
    pub fn writev(&self, iov: &IoVecs, offset: u64) -> io::Result<()> {
        self.check_write(offset, iov.len() as u64)?;
        self.write(iov, offset, vectored::pwritev)
    }

    /// Writes `iov` at `offset`, and waits until it is stable.
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
        // Through the page cache, one flush serves all writers that wait, while RWF_DSYNC would be one flush for each.
        // And only the flusher may get reports of failed writebacks, because the kernel makes each report once.
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

    /// Returns whether writes exclude each other: file systems lock a regular file for each write through the page
    /// cache.
    pub fn writes_take_turns(&self) -> bool {
        self.kind == Kind::Regular && !self.direct
    }

    /// Returns whether it is worth trying to read and write without waiting.
    pub fn nowait(&self) -> Nowait {
        self.nowait.kind()
    }

    /// Like [`readv`](Self::readv), but never waits. Returns false if it would have to wait, or failed.
    pub fn try_readv(&self, iov: &IoVecs, offset: u64) -> bool {
        self.check_range(offset, iov.len() as u64).is_ok() && self.nowait.read(&self.file, iov, offset)
    }

    /// Like [`writev`](Self::writev), but never waits. Returns false if it would have to wait, or failed. Then a part
    /// may have been written.
    pub fn try_writev(&self, iov: &IoVecs, offset: u64) -> bool {
        self.check_write(offset, iov.len() as u64).is_ok() && self.nowait.write(&self.file, iov, offset)
    }

    /// Makes stable all writes, discards and zeroes that completed before this call. Callers that wait at the same time
    /// share one flush.
    ///
    /// # Errors
    /// Those of `fdatasync`. Without O_DIRECT a failure is final: the kernel may have dropped the data that it
    /// could not write, so every later flush fails too, until the storage is opened anew.
    pub fn flush(&self) -> io::Result<()> {
        if !self.flushes {
            return Ok(());
        }
        self.flush_after_check(self.kind == Kind::BlockDevice)
    }

    /// Like [`flush`](Self::flush), while nothing is being written. If possible, this leaves the kernel's report of a
    /// failed write to the next process that opens the file.
    ///
    /// # Errors
    /// Those of [`flush`](Self::flush).
    pub fn flush_at_rest(&self) -> io::Result<()> {
        if !self.flushes {
            return Ok(());
        }
        self.flush_after_check(true)
    }

    fn flush_after_check(&self, check: bool) -> io::Result<()> {
        let written_back = self.written_back.as_ref().filter(|_| check);
        let check = || written_back.map_or(Ok(()), |written_back| written_back.wait(self.size()));
        let take = || sys::file::take_writeback_error(&self.file);
        self.flusher.flush(check, take, || {
            self.dispel_doubt()?;
            retry(|| self.file.sync_data())
        })
    }

    /// Returns whether all further flushes will fail.
    pub fn flushes_fail(&self) -> bool {
        self.flusher.is_over()
    }

    /// Returns whether the last flush failed, so that data written before it may be lost.
    pub fn last_flush_failed(&self) -> bool {
        self.flusher.has_failed()
    }

    /// Makes every flush fail from now on, because a predecessor has lost data.
    pub fn fail_flushes(&self) {
        self.flusher.give_up(libc::EIO);
    }

    /// Sets the witness that records the outcome of flushes through the page cache. It is told at once if flushes have
    /// failed for good.
    pub fn set_flush_witness(&self, witness: Option<Arc<dyn FlushWitness>>) {
        self.flusher.set_witness(witness);
    }

    /// Records that a predecessor was killed during a flush whose outcome is unknown.
    ///
    /// The next flush of a file syncs its whole file system, and fails if that reports a loss. Returns false for a
    /// block device, where no such check exists.
    pub fn doubt_last_flush(&self) -> bool {
        let can_be_dispelled = self.kind == Kind::Regular;
        // Relaxed: the next flush can only come from a ring that starts later, which orders this.
        self.doubtful.store(can_be_dispelled, Ordering::Relaxed);
        can_be_dispelled
    }

    /// Syncs the whole file system if a predecessor was killed during a flush. That predecessor may have taken the
    /// file's own report, but not the one of the file system.
    fn dispel_doubt(&self) -> io::Result<()> {
        // Relaxed: one flush runs at a time.
        if !self.doubtful.load(Ordering::Relaxed) {
            return Ok(());
        }
        let synced = retry(|| sys::file::sync_file_system(&self.file));
        if let Err(error) = &synced {
            // The kernel reports this only once.
            self.flusher.give_up(error.raw_os_error().unwrap_or(libc::EIO));
        }
        self.doubtful.store(false, Ordering::Relaxed);
        synced
    }

    /// Drops clean cached data and reads the size again, because another process has used the image, perhaps on another
    /// host. Returns whether the size has changed.
    ///
    /// # Errors
    /// The cache cannot be dropped, or the new size is invalid.
    pub fn look_anew(&self) -> io::Result<bool> {
        let before = self.size();
        let shared = self.kind == Kind::BlockDevice || !host_only(&self.file);
        if shared && !self.direct {
            // What is dirty stays.
            fadvise(&self.file, 0, None, Advice::DontNeed)?;
        }
        // If a file of this host has become shorter, it was truncated by mistake. Reads past its end fail until it is
        // extended.
        if shared || self.bytes()? > before {
            self.refresh_size()?;
        }
        Ok(self.size() != before)
    }

    /// Discards a range, or does nothing if the storage does not support that.
    ///
    /// If a regular file supports holes, it reads as zeroes there afterwards. The contents of a block device are up to
    /// the device.
    ///
    /// # Errors
    /// Those of [`writev`](Self::writev).
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_write(offset, len)?;
        if len == 0 || !self.unmap {
            return Ok(());
        }
        let block = u64::from(self.limits.logical_block_size);
        self.missing.discard(&self.file, self.kind, block, offset, len)
    }

    /// Makes a range read as zeroes. With `may_unmap` its space is deallocated, if it then reads as zeroes. Without,
    /// the space stays or becomes allocated, if the storage supports that.
    ///
    /// # Errors
    /// Those of [`writev`](Self::writev).
    pub fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        self.check_write(offset, len)?;
        let (mut from, end) = (offset, offset + len);
        if len == 0 {
            return Ok(());
        }
        if self
            .missing
            .zero(&self.file, offset, len, may_unmap && self.unmap)?
        {
            if self.kind == Kind::BlockDevice || self.end_of_file()? >= end {
                return Ok(());
            }
            // The file was truncated. Writing the last block of the range extends it again, so that the range can be
            // read.
            from = end - len.min(self.limits.logical_block_size.into());
        }
        zero::write_zeroes(from, end - from, |iov, at| self.write(iov, at, vectored::pwritev))
    }

    /// Returns the size of a regular file in bytes. Seeking is harmless, because nothing uses the position.
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
                "the range ends past the end of the disk",
            ));
        }
        if (offset | len) & (u64::from(self.limits.request_alignment) - 1) != 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the range is not a multiple of the block size",
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

/// Returns whether a file is on a file system that only this host can use, so that its cache is never stale.
fn host_only(file: &File) -> bool {
    /// `f_type` of ext2, ext3 and ext4; XFS; Btrfs; tmpfs; F2FS; bcachefs; ZFS; overlayfs.
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
            // The answer of a file system without O_DIRECT.
            Some(libc::EINVAL) if options.direct => options.direct_error(e),
            _ => options.open_error(e),
        })
}
