//! Whether what was cached has reached the disk, asked without taking the kernel's report.
//!
//! `fdatasync` takes the report of a failed writeback: who opens the file later is not told any more, and a process that
//! is killed inside the call takes the report along. A direct read waits for the writeback of its range, too, and fails
//! if one has failed, but leaves the report where it is. So such reads come before `fdatasync`, which then finds nothing
//! left to write. They have no memory to read into: EFAULT is the good answer, and nothing is moved.
//!
//! On a block device this comes before each flush. On a file, such a read locks out writers for as long as the writeback
//! takes, so there it is done at rest only, before the image is handed over. A kernel that looked at the memory first
//! would always say EFAULT; then `fdatasync` learns of the failure.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::kind::Kind;
use crate::sys::vectored;

/// Bytes that one read asks about.
const CHUNK: u64 = 1 << 30;
/// Chunks that are so many bits apart share one.
const WORDS: usize = 4;

/// The chunks of a file or device that were written to lately. Any thread.
#[derive(Debug)]
pub(super) struct WrittenBack {
    /// Open for O_DIRECT.
    file: File,
    /// Since the last look.
    touched: [AtomicU64; WORDS],
    /// Before it: a write that was under way then may have reached the cache after the look.
    before: [AtomicU64; WORDS],
}

impl WrittenBack {
    /// Opens `file` once more; `None` without direct I/O. The first look is at all chunks of a block device: a predecessor
    /// may have written there, and what it wrote can still be in the cache if somebody else has kept the device open.
    pub(super) fn open(file: &File, kind: Kind) -> Option<Self> {
        // Not by its path, where another file may be by now.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let mut options = fs::OpenOptions::new();
        let file = options.read(true).custom_flags(libc::O_DIRECT).open(path).ok()?;
        let before = if kind == Kind::BlockDevice { u64::MAX } else { 0 };
        Some(Self {
            file,
            touched: Default::default(),
            before: std::array::from_fn(|_| AtomicU64::new(before)),
        })
    }

    /// A range is about to be written to.
    pub(super) fn touch(&self, offset: u64, len: u64) {
        let last = offset.saturating_add(len.saturating_sub(1)) / CHUNK;
        for chunk in offset / CHUNK..=last {
            let (word, bit) = position(chunk);
            // Relaxed: who asks has been told of the write's end, and that orders more than this.
            if self.touched[word].load(Ordering::Relaxed) & bit == 0 {
                self.touched[word].fetch_or(bit, Ordering::Relaxed);
            }
        }
    }

    /// Waits until what was written has reached the disk, which is `size` bytes long.
    ///
    /// # Errors
    /// A writeback has failed, here or elsewhere in the file. The next `fdatasync`, by whomever, says so as well.
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
    fn every_chunk_of_a_range_is_asked_about_twice() {
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
