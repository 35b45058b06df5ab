//! Reads and writes that are over at once or not at all: what an event loop may do by itself.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::fstatfs;

use super::zero::is_unsupported;
use crate::io::IoVecs;
use crate::sys::vectored;

/// `linux/magic.h`; the `libc` crate has only the others.
const RAMFS_MAGIC: libc::c_long = 0x8584_58f6;

/// File systems whose files are memory.
const MEMORY: [libc::c_long; 3] = [libc::TMPFS_MAGIC, RAMFS_MAGIC, libc::HUGETLBFS_MAGIC];

/// Whether a read or write can be over without waiting for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nowait {
    /// Nearly always: there is no device.
    Memory,
    /// If it is in the page cache, and the kernel can tell (`RWF_NOWAIT`).
    PageCache,
    /// Never.
    No,
}

/// How one file takes reads and writes that must not wait.
#[derive(Debug)]
pub(super) struct NowaitIo {
    kind: Nowait,
    /// `RWF_NOWAIT` turned out to be refused.
    read_refused: AtomicBool,
    write_refused: AtomicBool,
}

impl NowaitIo {
    /// `direct`: the file is open with O_DIRECT.
    pub(super) fn of(file: &File, direct: bool) -> Self {
        // On memory file systems O_DIRECT, where it is taken at all, changes nothing; but whoever asks for it does not
        // want to be served here.
        let kind = match fstatfs(file).map(|stat| stat.f_type) {
            _ if direct => Nowait::No,
            Ok(magic) if MEMORY.contains(&magic) => Nowait::Memory,
            _ => Nowait::PageCache,
        };
        Self {
            kind,
            read_refused: AtomicBool::new(false),
            write_refused: AtomicBool::new(false),
        }
    }

    pub(super) fn kind(&self) -> Nowait {
        self.kind
    }

    /// Fills all of `iov`, or returns false.
    pub(super) fn read(&self, file: &File, iov: &IoVecs, offset: u64) -> bool {
        let (iov, len) = (iov.as_slice(), iov.len());
        match self.kind {
            Nowait::Memory => whole(&vectored::preadv(file, iov, offset), len),
            Nowait::PageCache => attempt(&self.read_refused, len, || {
                vectored::preadv_nowait(file, iov, offset)
            }),
            Nowait::No => false,
        }
    }

    /// Writes all of `iov`, or returns false: then nothing or a part was written.
    pub(super) fn write(&self, file: &File, iov: &IoVecs, offset: u64) -> bool {
        let (iov, len) = (iov.as_slice(), iov.len());
        match self.kind {
            Nowait::Memory => whole(&vectored::pwritev(file, iov, offset), len),
            Nowait::PageCache => attempt(&self.write_refused, len, || {
                vectored::pwritev_nowait(file, iov, offset)
            }),
            Nowait::No => false,
        }
    }
}

/// Tries `io` unless it is known to be refused; returns whether it moved all of `len` bytes.
fn attempt(refused: &AtomicBool, len: usize, io: impl FnOnce() -> io::Result<usize>) -> bool {
    // Relaxed: a thread that sees the flag late makes one futile call.
    if refused.load(Ordering::Relaxed) {
        return false;
    }
    let result = io();
    if result.as_ref().is_err_and(is_unsupported) {
        refused.store(true, Ordering::Relaxed);
    }
    whole(&result, len)
}

/// Whatever is not a success is repeated, and reported, by who may wait.
fn whole(result: &io::Result<usize>, len: usize) -> bool {
    result.as_ref().is_ok_and(|&moved| moved == len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_remembered_and_a_miss_is_not() {
        let (refused, mut calls) = (AtomicBool::new(false), 0);
        for errno in [libc::EAGAIN, libc::EINTR, libc::EOPNOTSUPP, libc::EOPNOTSUPP] {
            let done = attempt(&refused, 8, || {
                calls += 1;
                Err(io::Error::from_raw_os_error(errno))
            });
            assert!(!done);
        }
        assert_eq!(calls, 3);
    }

    #[test]
    fn only_a_whole_transfer_counts() {
        let refused = AtomicBool::new(false);
        assert!(!attempt(&refused, 8, || Ok(7)));
        assert!(!attempt(&refused, 8, || Ok(0)));
        assert!(attempt(&refused, 8, || Ok(8)));
    }
}
