//! Transfers that the kernel does not do at once, on purpose: for `--inject`.

use std::io;

use smallvec::SmallVec;

use super::file::RawFile;
use super::sys;
use crate::io::IoVecs;

impl RawFile {
    /// Reads or writes all of `iov`, with calls that each move about half of it.
    pub(super) fn transfer_in_halves(&self, iov: &IoVecs, offset: u64, write: bool) -> io::Result<()> {
        let most = self.half(iov);
        match write {
            true => self.writev_by(iov, offset, |file, iov, at| {
                sys::pwritev(file, &front(iov, most), at)
            }),
            false => self.readv_by(iov, offset, |file, iov, at| {
                sys::preadv(file, &front(iov, most), at)
            }),
        }
    }

    /// Writes the first half of `iov`, and no more.
    pub(super) fn write_half(&self, iov: &IoVecs, offset: u64) -> io::Result<()> {
        let mut first = IoVecs::new();
        for range in front(iov.as_slice(), self.half(iov)) {
            // SAFETY: a part of the list, whose owner vouches for the memory longer than this list lives.
            unsafe { first.push(range.iov_base.cast(), range.iov_len) };
        }
        self.writev(&first, offset)
    }

    /// Half of the bytes, as whole blocks, but at least one.
    fn half(&self, iov: &IoVecs) -> usize {
        let block = self.limits().logical_block_size as usize;
        (iov.len() / 2 / block * block).max(block)
    }
}

/// The first `most` bytes of a list.
fn front(iov: &[libc::iovec], mut most: usize) -> SmallVec<[libc::iovec; 8]> {
    let mut part = SmallVec::new();
    for range in iov {
        let len = range.iov_len.min(most);
        if len == 0 {
            break;
        }
        part.push(libc::iovec {
            iov_base: range.iov_base,
            iov_len: len,
        });
        most -= len;
    }
    part
}
