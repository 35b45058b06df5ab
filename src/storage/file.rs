//! Regular files and block devices.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::error::Error;
use super::flush::{FlushWitness, Flusher};
use super::geometry::{Geometry, Kind};
use super::nowait::{Nowait, NowaitIo};
use super::transfer::{IOV_MAX, retry, transfer};
use super::written_back::WrittenBack;
use super::zero::{self, Missing};
use super::{Limits, OpenOptions, bounce, sys};
use crate::io::IoVecs;

/// A raw disk image, or a block device.
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
    pub(super) fn open(options: &OpenOptions) -> Result<Self, Error> {
        // Looked at before it is opened: opening a FIFO blocks, and opening some devices has effects.
        let meta = fs::metadata(&options.path).map_err(|e| options.open_error(e))?;
        Kind::of(&meta, &options.path)?;
        let file = open_file(options)?;
        let meta = file.metadata().map_err(|e| options.query_error("type", e))?;
        let kind = Kind::of(&meta, &options.path)?;
        if kind == Kind::BlockDevice && !options.read_only && sys::blkroget(&file).unwrap_or(false) {
            return Err(options.open_error(io::Error::from_raw_os_error(libc::EROFS)));
        }
        let geometry = Geometry::of(&file, &meta, kind, options)?;
        Ok(Self {
            nowait: NowaitIo::of(&file, options.direct),
            written_back: match options.direct || options.read_only {
                true => None,
                false => WrittenBack::open(&file),
            },
            doubtful: AtomicBool::new(false),
            file,
            path: options.path.clone(),
            kind,
            limits: geometry.limits,
            direct: options.direct,
            size: AtomicU64::new(geometry.size),
            missing: Missing::default(),
            flusher: Flusher::new(!options.direct),
            locked: Arc::default(),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn size(&self) -> u64 {
        // Relaxed: a number on its own; the kernel has the last word on where the file ends.
        self.size.load(Ordering::Relaxed)
    }

    pub(super) fn refresh_size(&self) -> io::Result<u64> {
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
            Kind::BlockDevice => sys::blkgetsize64(&self.file),
        }
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) fn lock_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.locked)
    }

    pub(super) fn takes_as_is(&self, iov: &IoVecs, offset: u64, write: bool) -> bool {
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

    pub(super) fn readv(&self, iov: &IoVecs, offset: u64) -> io::Result<()> {
        self.readv_by(iov, offset, sys::preadv)
    }

    /// [`readv`](Self::readv) with another system call.
    #[inline]
    pub(super) fn readv_by(
        &self,
        iov: &IoVecs,
        offset: u64,
        preadv: impl Fn(&File, &[libc::iovec], u64) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.check_range(offset, iov.len() as u64)?;
        let read = |iov: &[libc::iovec], at| preadv(&self.file, iov, at);
        if self.needs_bounce(iov) {
            return bounce::read(iov, offset, self.bounce_alignment(), read);
        }
        transfer(iov.as_slice(), offset, io::ErrorKind::UnexpectedEof, read)
    }

    pub(super) fn salvage(
        &self,
        iov: &IoVecs,
        offset: u64,
        allowed: impl FnMut(u64, u64) -> bool,
    ) -> io::Result<()> {
        let read = |iov: &[libc::iovec], at| match self.check_range(at, 0) {
            Ok(()) => sys::preadv(&self.file, iov, at),
            Err(error) => Err(error),
        };
        bounce::salvage(iov, offset, self.bounce_alignment(), allowed, read)
    }

    pub(super) fn writev(&self, iov: &IoVecs, offset: u64) -> io::Result<()> {
        self.writev_by(iov, offset, sys::pwritev)
    }

    /// [`writev`](Self::writev) with another system call.
    #[inline]
    pub(super) fn writev_by(
        &self,
        iov: &IoVecs,
        offset: u64,
        pwritev: impl Fn(&File, &[libc::iovec], u64) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.check_write(offset, iov.len() as u64)?;
        self.write(iov, offset, pwritev)
    }

    pub(super) fn writev_durable(&self, iov: &IoVecs, offset: u64) -> io::Result<()> {
        self.check_write(offset, iov.len() as u64)?;
        if self.direct {
            match self.write(iov, offset, sys::pwritev_dsync) {
                Err(e) if zero::is_unsupported(&e) => {}
                result => return result,
            }
        }
        // Through the page cache one flush serves all writers that wait for one, where RWF_DSYNC would be a flush each;
        // and only the flusher may learn of failed writebacks, because the kernel reports each of them once.
        self.write(iov, offset, sys::pwritev)?;
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

    pub(super) fn writes_take_turns(&self) -> bool {
        self.kind == Kind::Regular && !self.direct
    }

    pub(super) fn nowait(&self) -> Nowait {
        self.nowait.kind()
    }

    pub(super) fn try_readv(&self, iov: &IoVecs, offset: u64) -> bool {
        self.check_range(offset, iov.len() as u64).is_ok() && self.nowait.read(&self.file, iov, offset)
    }

    pub(super) fn try_writev(&self, iov: &IoVecs, offset: u64) -> bool {
        self.check_write(offset, iov.len() as u64).is_ok() && self.nowait.write(&self.file, iov, offset)
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        self.flush_after_look(self.kind == Kind::BlockDevice)
    }

    pub(super) fn flush_at_rest(&self) -> io::Result<()> {
        self.flush_after_look(true)
    }

    fn flush_after_look(&self, look: bool) -> io::Result<()> {
        let written_back = self.written_back.as_ref().filter(|_| look);
        let look = || written_back.map_or(Ok(()), |written_back| written_back.wait(self.size()));
        self.flusher.flush(look, || {
            self.dispel_doubt()?;
            retry(|| self.file.sync_data())
        })
    }

    pub(super) fn flushes_fail(&self) -> bool {
        self.flusher.is_over()
    }

    pub(super) fn last_flush_failed(&self) -> bool {
        self.flusher.has_failed()
    }

    pub(super) fn fail_flushes(&self) {
        self.flusher.give_up(libc::EIO);
    }

    pub(super) fn set_flush_witness(&self, witness: Option<Arc<dyn FlushWitness>>) {
        self.flusher.set_witness(witness);
    }

    pub(super) fn doubt_last_flush(&self) -> bool {
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
        let synced = retry(|| sys::syncfs(&self.file));
        if let Err(error) = &synced {
            // Reported once, and not to be forgotten.
            self.flusher.give_up(error.raw_os_error().unwrap_or(libc::EIO));
        }
        self.doubtful.store(false, Ordering::Relaxed);
        synced
    }

    pub(super) fn look_anew(&self) -> io::Result<bool> {
        let before = self.size();
        let shared = self.kind == Kind::BlockDevice || !host_only(&self.file);
        if shared && !self.direct {
            sys::drop_cache(&self.file)?;
        }
        // A file of this host that has become shorter was cut by mistake: what is missing fails, until it is written again.
        if shared || self.bytes()? > before {
            self.refresh_size()?;
        }
        Ok(self.size() != before)
    }

    pub(super) fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_write(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        let block = u64::from(self.limits.logical_block_size);
        self.missing.discard(&self.file, self.kind, block, offset, len)
    }

    pub(super) fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        self.check_write(offset, len)?;
        let (mut from, end) = (offset, offset + len);
        if len == 0 {
            return Ok(());
        }
        if self.missing.zero(&self.file, offset, len, may_unmap)? {
            if self.kind == Kind::BlockDevice || sys::end_of(&self.file)? >= end {
                return Ok(());
            }
            // The file was cut short, and what lies behind its end cannot be read: its last block extends it.
            from = end - len.min(self.limits.logical_block_size.into());
        }
        zero::write_zeroes(from, end - from, |iov, at| self.write(iov, at, sys::pwritev))
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
    let magic = sys::file_system_magic(file).ok();
    magic.is_some_and(|magic| MAGIC.iter().any(|known| i64::from(*known) == magic))
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
