//! A check whether cached data has reached the disk, which does not take the kernel's report of failed writes.
//!
//! `fdatasync` takes this report: a later opener of the file does not get it any more, and if the process is killed
//! within the call, the report is lost. A direct read also waits for the writeback of its range and fails if that has
//! failed, but leaves the report in place. So such reads come before `fdatasync`, which then has nothing left to write.
//! They have no memory to read into: EFAULT means success, and no data is transferred.
//!
//! On a block device, this check precedes every flush. On a file, such a read blocks writers during the writeback. So
//! there the check is made only while nothing is written, before the image is handed over. A kernel that checks the
//! memory first would always return EFAULT, and then only `fdatasync` learns of the failure.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::kind::Kind;
use crate::sys::vectored;

/// Number of bytes that one read covers.
const CHUNK: u64 = 1 << 30;
/// Number of words in a set of chunks. Chunks whose numbers are equal modulo the number of bits share a bit.
const WORDS: usize = 4;

/// The chunks of a file or device that were written since the last check. Any thread.
#[derive(Debug)]
pub(super) struct WrittenBack {
    /// Open for O_DIRECT.
    file: File,
    /// Chunks written since the last check.
    touched: [AtomicU64; WORDS],
    /// Chunks written between the last two checks: a write that was running at the last check may have been too late
    /// for it.
    before: [AtomicU64; WORDS],
}

impl WrittenBack {
    /// Opens `file` again. Returns `None` if it does not support direct I/O.
    pub(super) fn open(file: &File, kind: Kind) -> Option<Self> {
        // Its path may name another file by now.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let mut options = fs::OpenOptions::new();
        let file = options.read(true).custom_flags(libc::O_DIRECT).open(path).ok()?;
        Some(Self::through(file, kind))
    }

    /// Uses a file that is open for O_DIRECT. The first check of a block device covers all chunks: if another process has
    /// kept the device open, a predecessor's writes may still be in the cache.
    pub(super) fn through(file: File, kind: Kind) -> Self {
        let before = if kind == Kind::BlockDevice { u64::MAX } else { 0 };
        Self {
            file,
            touched: Default::default(),
            before: std::array::from_fn(|_| AtomicU64::new(before)),
        }
    }

    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Records that a range is about to be written.
    pub(super) fn touch(&self, offset: u64, len: u64) {
        let last = offset.saturating_add(len.saturating_sub(1)) / CHUNK;
        for chunk in offset / CHUNK..=last {
            let (word, bit) = position(chunk);
            // Relaxed: a flush needs to cover only writes that have completed before it, and their completion orders
            // this.
            if self.touched[word].load(Ordering::Relaxed) & bit == 0 {
                self.touched[word].fetch_or(bit, Ordering::Relaxed);
            }
        }
    }

    /// Waits until everything that was written has reached the disk, which has `size` bytes.
    ///
    /// # Errors
    /// A writeback has failed, in these chunks or elsewhere in the file. The next `fdatasync` of any process
    /// fails as well.
    pub(super) fn wait(&self, size: u64) -> io::Result<()> {
        let mut touched = [0; WORDS];
        for (n, now) in touched.iter_mut().enumerate() {
            *now = self.touched[n].swap(0, Ordering::Relaxed);
            *now |= self.before[n].swap(*now, Ordering::Relaxed);
        }
        let was_touched = |chunk: &u64| {
            let (word, bit) = position(*chunk);
            touched[word] & bit != 0
        };
        for chunk in (0..size.div_ceil(CHUNK)).filter(was_touched) {
            match vectored::read_nothing(&self.file, chunk * CHUNK, CHUNK) {
                Err(e) if matches!(e.raw_os_error(), Some(libc::EIO | libc::ENOSPC)) => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }
}

fn position(chunk: u64) -> (usize, u64) {
    let bit = chunk % (64 * WORDS as u64);
    let word = usize::try_from(bit / 64).expect("one of a few");
    (word, 1 << (bit % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> (tempfile::NamedTempFile, WrittenBack) {
        let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let written_back = WrittenBack {
            file: file.reopen().unwrap(),
            touched: Default::default(),
            before: Default::default(),
        };
        (file, written_back)
    }

    fn words(words: &[AtomicU64; WORDS]) -> [u64; WORDS] {
        words.each_ref().map(|word| word.load(Ordering::Relaxed))
    }

    #[test]
    fn every_chunk_of_a_range_is_checked_twice() {
        let (_file, written_back) = open();
        written_back.touch(3 * CHUNK - 1, 2);
        written_back.touch(64 * CHUNK, 1);
        written_back.touch(256 * CHUNK, CHUNK);
        written_back.touch(u64::MAX - 5, 5);
        let expected = [0b1101, 1, 0, 1 << 63];
        assert_eq!(words(&written_back.touched), expected);
        written_back.wait(1 << 40).unwrap();
        assert_eq!(
            (words(&written_back.touched), words(&written_back.before)),
            ([0; WORDS], expected)
        );
        written_back.wait(1 << 40).unwrap();
        assert_eq!(words(&written_back.before), [0; WORDS]);
    }
}
