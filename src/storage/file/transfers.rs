//! Reads, writes, discards and zeroes of an image.

use std::fs::File;
use std::io;

use super::RawFile;
use crate::io::IoVecs;
use crate::storage::kind::Kind;
use crate::storage::nowait::Nowait;
use crate::storage::transfer::{IOV_MAX, transfer};
use crate::storage::{bounce, zero};
use crate::sys::vectored;

impl RawFile {
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

    /// Returns whether the kernel accepts reads that fail if they would have to wait.
    pub fn supports_nowait(&self) -> bool {
        vectored::supports_nowait(&self.file)
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

    /// Like [`try_readv`](Self::try_readv), but reads a mapped file with a system call, too.
    pub fn try_readv_by_call(&self, iov: &IoVecs, offset: u64) -> bool {
        self.check_range(offset, iov.len() as u64).is_ok()
            && self.nowait.read_by_call(&self.file, iov, offset)
    }

    /// Like [`writev`](Self::writev), but never waits. Returns false if it would have to wait, or failed. Then a part
    /// may have been written.
    pub fn try_writev(&self, iov: &IoVecs, offset: u64) -> bool {
        self.check_write(offset, iov.len() as u64).is_ok() && self.nowait.write(&self.file, iov, offset)
    }

    /// Like [`try_writev`](Self::try_writev), but writes a mapped file with a system call, too.
    pub fn try_writev_by_call(&self, iov: &IoVecs, offset: u64) -> bool {
        self.check_write(offset, iov.len() as u64).is_ok()
            && self.nowait.write_by_call(&self.file, iov, offset)
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
        self.discard_checked(offset, len)
    }

    /// Discards a range that may be written, or does nothing if the storage does not support that.
    pub(super) fn discard_checked(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 || !self.unmap {
            return Ok(());
        }
        let block = u64::from(self.limits.logical_block_size);
        let result = self.missing.discard(&self.file, self.kind, block, offset, len);
        self.nowait.forget(offset, len);
        result
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
        if self.zero_by_kernel(offset, len, may_unmap)? {
            if self.kind == Kind::BlockDevice || self.end_of_file()? >= end {
                return Ok(());
            }
            // The file was truncated. Writing the last block of the range extends it again, so that the range can be
            // read.
            from = end - len.min(self.limits.logical_block_size.into());
        }
        zero::write_zeroes(from, end - from, |iov, at| self.write(iov, at, vectored::pwritev))
    }

    /// Makes a range read as zeroes that may be written. Returns false if the kernel cannot do it without a write.
    pub(super) fn zero_by_kernel(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<bool> {
        let zeroed = self
            .missing
            .zero(&self.file, offset, len, may_unmap && self.unmap);
        self.nowait.forget(offset, len);
        zeroed
    }

    pub(super) fn bounce_alignment(&self) -> usize {
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
