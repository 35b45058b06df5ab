//! Reads for image formats: their structures may begin anywhere, and data may end past the end of the file.

use std::io;

use smallvec::SmallVec;

use super::RawFile;
use crate::io::IoVecs;
use crate::storage::format::QCOW2;
use crate::storage::transfer::IOV_MAX;
use crate::sys::vectored;

/// Number of bytes that are read at once through a buffer.
const PIECE: usize = 1 << 20;

impl RawFile {
    /// Fills `len` bytes of `iov` from byte `at` on, with the bytes of the file from `offset` on. What is past the end of
    /// the file is zero.
    ///
    /// # Errors
    /// `preadv` failed, or the memory of `iov` is lost (EFAULT).
    pub fn read_part(&self, iov: &IoVecs, at: usize, len: usize, offset: u64) -> io::Result<()> {
        if self.is_aligned(iov, at, len, offset) {
            return self.read_directly(iov, at, len, offset);
        }
        let mut done = 0;
        let mut buffer = vec![0; PIECE.min(len)];
        while done < len {
            let piece = &mut buffer[..PIECE.min(len - done)];
            let read = self.read_bytes(piece, offset + done as u64)?;
            piece[read..].fill(0);
            iov.write_at(at + done, piece);
            done += piece.len();
        }
        match iov.has_lost() {
            false => Ok(()),
            true => Err(io::Error::from_raw_os_error(libc::EFAULT)),
        }
    }

    fn is_aligned(&self, iov: &IoVecs, at: usize, len: usize, offset: u64) -> bool {
        let (unit, memory) = (
            self.limits.request_alignment as usize,
            self.limits.memory_alignment as usize,
        );
        let fits = |range: libc::iovec| {
            range.iov_base.addr().is_multiple_of(memory) && range.iov_len.is_multiple_of(unit)
        };
        unit == 1 && memory == 1 || offset.is_multiple_of(unit as u64) && iov.part(at, len).all(fits)
    }

    fn read_directly(&self, iov: &IoVecs, at: usize, len: usize, offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            let ranges: SmallVec<[libc::iovec; 8]> = iov.part(at + done, len - done).take(IOV_MAX).collect();
            match vectored::preadv(&self.file, &ranges, offset + done as u64) {
                Ok(0) => {
                    iov.zero_at(at + done, len - done);
                    break;
                }
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Fills `bytes` from `offset` on. Returns the number of bytes before the end of the file; the others stay as they
    /// are.
    ///
    /// # Errors
    /// `pread` failed.
    pub fn read_bytes(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let align = self.bounce_alignment();
        if align == 1 {
            return self.read_until_end(bytes, offset);
        }
        let before = usize::try_from(offset % align as u64).expect("below the alignment");
        let len = (before + bytes.len()).next_multiple_of(align);
        let mut buffer = vec![0; len + align];
        let skip = buffer.as_ptr().align_offset(align);
        let aligned = &mut buffer[skip..skip + len];
        let read = self.read_until_end(aligned, offset - before as u64)?;
        let read = read.saturating_sub(before).min(bytes.len());
        bytes[..read].copy_from_slice(&aligned[before..before + read]);
        Ok(read)
    }

    /// Returns whether the file begins like a qcow2 image.
    ///
    /// # Errors
    /// `pread` failed.
    pub fn has_qcow2_header(&self) -> io::Result<bool> {
        let mut mark = [0; QCOW2.len()];
        let read = self.read_bytes(&mut mark, 0)?;
        Ok(&mark[..read] == QCOW2)
    }

    fn read_until_end(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < bytes.len() {
            let rest = &mut bytes[done..];
            let range = libc::iovec {
                iov_base: rest.as_mut_ptr().cast(),
                iov_len: rest.len(),
            };
            match vectored::preadv(&self.file, &[range], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // With O_DIRECT, the end of a file may have no alignment.
                Err(error) if self.direct && done > 0 && error.raw_os_error() == Some(libc::EINVAL) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }
}
