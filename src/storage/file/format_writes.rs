//! Writes for image formats: the file grows as it is written, and structures may begin anywhere.

use std::io;

use smallvec::SmallVec;

use super::RawFile;
use crate::io::IoVecs;
use crate::storage::kind::Kind;
use crate::storage::transfer::transfer;
use crate::sys::vectored;

/// Data of a write: `len` bytes of `memory` from byte `at` on, with other bytes around them.
#[derive(Clone, Copy, Debug)]
pub struct Gathered<'a> {
    /// Bytes before the memory.
    pub before: &'a [u8],
    /// The memory.
    pub memory: &'a IoVecs,
    /// First byte of the memory.
    pub at: usize,
    /// Number of bytes of the memory.
    pub len: usize,
    /// Bytes after the memory.
    pub after: &'a [u8],
}

impl Gathered<'_> {
    fn total(&self) -> usize {
        self.before.len() + self.len + self.after.len()
    }

    fn ranges(&self) -> SmallVec<[libc::iovec; 8]> {
        let own = |bytes: &[u8]| libc::iovec {
            // The kernel only reads it.
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        let memory = self.memory.part(self.at, self.len);
        let all = [own(self.before)]
            .into_iter()
            .chain(memory)
            .chain([own(self.after)]);
        all.filter(|range| range.iov_len > 0).collect()
    }

    fn copy_to(&self, bytes: &mut [u8]) -> io::Result<()> {
        let (before, rest) = bytes.split_at_mut(self.before.len());
        let (memory, after) = rest.split_at_mut(self.len);
        before.copy_from_slice(self.before);
        self.memory.read_at(self.at, memory);
        after.copy_from_slice(self.after);
        match self.memory.has_lost() {
            false => Ok(()),
            true => Err(io::Error::from_raw_os_error(libc::EFAULT)),
        }
    }
}

impl RawFile {
    /// Writes all of `data` from `offset` on. A regular file grows as needed.
    ///
    /// # Errors
    /// The file is read-only (EROFS), the memory is lost (EFAULT), or `pwritev` failed.
    pub fn write_gathered(&self, data: &Gathered<'_>, offset: u64) -> io::Result<()> {
        self.check_growing_write(offset, data.total() as u64)?;
        let (unit, memory) = (
            self.limits.request_alignment as usize,
            self.limits.memory_alignment as usize,
        );
        let fits = |range: &libc::iovec| {
            range.iov_base.addr().is_multiple_of(memory) && range.iov_len.is_multiple_of(unit)
        };
        let ranges = data.ranges();
        if offset.is_multiple_of(unit as u64) && ranges.iter().all(fits) {
            return self.write_all(&ranges, offset);
        }
        let mut bytes = vec![0; data.total()];
        data.copy_to(&mut bytes)?;
        self.patch(&bytes, offset)
    }

    /// Writes `bytes` from `offset` on. A regular file grows as needed.
    ///
    /// # Errors
    /// Those of [`write_gathered`](Self::write_gathered).
    pub fn write_bytes(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.check_growing_write(offset, bytes.len() as u64)?;
        self.patch(bytes, offset)
    }

    /// Writes `bytes` of any place and length. With O_DIRECT, whole blocks are read, changed and written.
    fn patch(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let align = self.bounce_alignment();
        if align == 1 {
            let range = libc::iovec {
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: bytes.len(),
            };
            return self.write_all(&[range], offset);
        }
        let _alone = self.patching.lock();
        let before = usize::try_from(offset % align as u64).expect("below the alignment");
        let (start, len) = (
            offset - before as u64,
            (before + bytes.len()).next_multiple_of(align),
        );
        let mut buffer = vec![0_u8; len + align];
        let skip = buffer.as_ptr().align_offset(align);
        let aligned = &mut buffer[skip..skip + len];
        if before > 0 || !bytes.len().is_multiple_of(align) {
            self.read_bytes(aligned, start)?;
        }
        aligned[before..before + bytes.len()].copy_from_slice(bytes);
        let range = libc::iovec {
            iov_base: aligned.as_mut_ptr().cast(),
            iov_len: len,
        };
        self.write_all(&[range], start)
    }

    fn write_all(&self, ranges: &[libc::iovec], offset: u64) -> io::Result<()> {
        transfer(ranges, offset, io::ErrorKind::WriteZero, |iov, at| {
            vectored::pwritev(&self.file, iov, at)
        })
    }

    /// Like [`write_gathered`](Self::write_gathered) of a whole list, but never waits. Returns false if it would have to
    /// wait, or failed. Then a part may have been written.
    pub fn try_write_growing(&self, memory: &IoVecs, offset: u64) -> bool {
        self.check_growing_write(offset, memory.len() as u64).is_ok()
            && self.nowait.write(&self.file, memory, offset)
    }

    /// Fills all of `memory` from `offset` on, but never waits. Returns false if it would have to wait, or failed, or if
    /// the file ends before.
    pub fn try_read_growing(&self, memory: &IoVecs, offset: u64) -> bool {
        offset.is_multiple_of(self.limits.request_alignment.into())
            && self.nowait.read(&self.file, memory, offset)
    }

    /// Gives the space of a range that nobody uses back to the file system, if the file was opened with `unmap` and that
    /// is possible.
    ///
    /// # Errors
    /// The file is read-only (EROFS), or `fallocate` failed.
    pub fn give_back(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_growing_write(offset, len)?;
        self.discard_checked(offset, len)
    }

    /// Makes a range read as zeroes. A regular file grows as needed.
    ///
    /// # Errors
    /// Those of [`write_gathered`](Self::write_gathered).
    pub fn zero_growing(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        self.check_growing_write(offset, len)?;
        let zeroed = self.zero_by_kernel(offset, len, may_unmap)?;
        if zeroed && (self.kind == Kind::BlockDevice || self.end()? >= offset + len) {
            return Ok(());
        }
        crate::storage::zero::write_zeroes(offset, len, |iov, at| {
            let data = Gathered {
                before: &[],
                memory: iov,
                at: 0,
                len: iov.len(),
                after: &[],
            };
            self.write_gathered(&data, at)
        })
    }

    /// Returns the present end of the file or device in bytes.
    ///
    /// # Errors
    /// The size cannot be read.
    pub fn end(&self) -> io::Result<u64> {
        match self.kind {
            Kind::Regular => self.end_of_file(),
            Kind::BlockDevice => Ok(self.size()),
        }
    }

    /// Makes a regular file end at `end` bytes, if it ends before (`shorten`: after) that.
    ///
    /// # Errors
    /// `ftruncate` failed.
    pub fn set_end(&self, end: u64, shorten: bool) -> io::Result<()> {
        let now = self.end()?;
        let is_right = if shorten { now <= end } else { now >= end };
        match is_right || self.kind == Kind::BlockDevice {
            true => Ok(()),
            false => {
                let done = self.file.set_len(end);
                self.nowait.forget(end, now.saturating_sub(end));
                done
            }
        }
    }

    fn check_growing_write(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.limits.read_only {
            return Err(io::Error::from_raw_os_error(libc::EROFS));
        }
        let end = offset.checked_add(len);
        if self.kind == Kind::BlockDevice && end.is_none_or(|end| end > self.size()) {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        if let Some(written_back) = &self.written_back {
            written_back.touch(offset, len);
        }
        Ok(())
    }
}
