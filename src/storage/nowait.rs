//! Reads and writes that never wait: they complete at once, or not at all. An IOThread may call them.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::fstatfs;

use super::kind::Kind;
use super::mapped::Mapped;
use super::zero::is_unsupported;
use crate::io::IoVecs;
use crate::sys::vectored;

/// The magic number in `linux/magic.h` that the `libc` crate lacks.
const RAMFS_MAGIC: libc::c_long = 0x8584_58f6;

/// File systems that keep their files in memory.
const MEMORY: [libc::c_long; 3] = [libc::TMPFS_MAGIC, RAMFS_MAGIC, libc::HUGETLBFS_MAGIC];

/// Magic numbers of the file systems in memory that report holes, so that their files can be mapped.
const MAPPABLE: [libc::c_long; 1] = [libc::TMPFS_MAGIC];

/// Whether reads and writes can complete without waiting for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nowait {
    /// Nearly always, because there is no device.
    Memory,
    /// If the data is in the page cache, and the kernel supports `RWF_NOWAIT`.
    PageCache,
    /// Never.
    No,
}

/// The support of a file for reads and writes that never wait.
#[derive(Debug)]
pub(super) struct NowaitIo {
    kind: Nowait,
    /// The file's mapping, if it is in memory and may be mapped.
    mapped: Option<Mapped>,
    /// Reads with `RWF_NOWAIT` have turned out to be refused.
    read_refused: AtomicBool,
    /// Writes with `RWF_NOWAIT` are not tried, or have turned out to be refused.
    write_refused: AtomicBool,
}

impl NowaitIo {
    /// `direct`: the file is open with O_DIRECT.
    ///
    /// Writes to a regular file are not tried, because they wait while its file system is frozen (`fsfreeze`), also with
    /// `RWF_NOWAIT`. File systems in memory cannot be frozen.
    pub(super) fn of(file: &File, place: Kind, direct: bool) -> Self {
        // On file systems in memory, O_DIRECT changes nothing, if it is accepted at all. But a user who asks for it
        // does not want I/O in the IOThread.
        let kind = match fstatfs(file).map(|stat| stat.f_type) {
            _ if direct => Nowait::No,
            Ok(magic) if MEMORY.contains(&magic) => Nowait::Memory,
            _ => Nowait::PageCache,
        };
        Self {
            kind,
            mapped: None,
            read_refused: AtomicBool::new(false),
            write_refused: AtomicBool::new(place == Kind::Regular),
        }
    }

    /// Maps a file in memory, so that it can be read and written without system calls. What the file grows by later is
    /// mapped when it is used.
    pub(super) fn map(&mut self, file: &File, size: u64) {
        let mappable = fstatfs(file).is_ok_and(|stat| MAPPABLE.contains(&stat.f_type));
        if self.kind != Nowait::Memory || !mappable {
            return;
        }
        match Mapped::new(file, size) {
            Ok(mapped) => self.mapped = Some(mapped),
            Err(error) => tracing::debug!(%error, "cannot map the image: using system calls"),
        }
    }

    /// A range may have become a hole, or be past the end of the file now.
    pub(super) fn forget(&self, offset: u64, len: u64) {
        if let Some(mapped) = &self.mapped {
            mapped.forget(offset, len);
        }
    }

    pub(super) fn kind(&self) -> Nowait {
        self.kind
    }

    /// Fills all of `iov`. Returns false if that would have to wait, or failed, or if the file ends within the range.
    pub(super) fn read(&self, file: &File, iov: &IoVecs, offset: u64) -> bool {
        match &self.mapped {
            None => self.read_by_call(file, iov, offset),
            Some(mapped) => mapped.read(iov, offset) || self.read_and_learn(mapped, file, iov, offset),
        }
    }

    #[cold]
    fn read_and_learn(&self, mapped: &Mapped, file: &File, iov: &IoVecs, offset: u64) -> bool {
        let done = self.read_by_call(file, iov, offset);
        if done {
            mapped.learn(file, offset, iov.len(), false);
        }
        done
    }

    /// Like [`read`](Self::read), with a system call.
    #[inline]
    pub(super) fn read_by_call(&self, file: &File, iov: &IoVecs, offset: u64) -> bool {
        let (iov, len) = (iov.as_slice(), iov.len());
        match self.kind {
            Nowait::Memory => whole(&vectored::preadv(file, iov, offset), len),
            Nowait::PageCache => attempt(&self.read_refused, len, || {
                vectored::preadv_nowait(file, iov, offset)
            }),
            Nowait::No => false,
        }
    }

    /// Writes all of `iov`. The file may end before or within the range: then it grows. Returns false if that would have
    /// to wait, or failed. Then a part may have been written.
    pub(super) fn write(&self, file: &File, iov: &IoVecs, offset: u64) -> bool {
        match &self.mapped {
            None => self.write_by_call(file, iov, offset),
            Some(mapped) => mapped.write(iov, offset) || self.write_and_learn(mapped, file, iov, offset),
        }
    }

    #[cold]
    fn write_and_learn(&self, mapped: &Mapped, file: &File, iov: &IoVecs, offset: u64) -> bool {
        let done = self.write_by_call(file, iov, offset);
        if done {
            mapped.learn(file, offset, iov.len(), true);
        }
        done
    }

    /// Like [`write`](Self::write), with a system call.
    #[inline]
    pub(super) fn write_by_call(&self, file: &File, iov: &IoVecs, offset: u64) -> bool {
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

/// Tries `io` unless it is known to be refused. Returns whether it transferred all `len` bytes.
fn attempt(refused: &AtomicBool, len: usize, io: impl FnOnce() -> io::Result<usize>) -> bool {
    // Relaxed: a thread that sees the flag late makes one useless call.
    if refused.load(Ordering::Relaxed) {
        return false;
    }
    let result = io();
    if result.as_ref().is_err_and(is_unsupported) {
        refused.store(true, Ordering::Relaxed);
    }
    whole(&result, len)
}

/// Returns whether all bytes were transferred. If not, a worker repeats the request and reports its error.
fn whole(result: &io::Result<usize>, len: usize) -> bool {
    result.as_ref().is_ok_and(|&moved| moved == len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_remembered_and_cache_misses_are_not() {
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
