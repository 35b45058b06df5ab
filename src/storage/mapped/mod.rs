//! Files in memory, mapped: reads and writes are copies instead of system calls. Any thread.
//!
//! A file is mapped in parts, and some room after its end with the first one. When the file has outgrown its parts, the
//! next part is made, which doubles the room. So a file that grows needs few mappings, and no address changes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::OnceLock;

use crate::io::IoVecs;

mod part;
mod present;

use part::{Part, UNIT};

/// Maximum number of bytes that are mapped. The maps of bits take up to 1/32768 of that.
const LONGEST: u64 = 1 << 40;

/// A file in memory, mapped.
#[derive(Debug)]
pub(super) struct Mapped {
    /// The beginning of the file.
    first: Part,
    /// The parts after it. Each begins where the one before ends, and is as long as all before it. A part that could not
    /// be mapped is `None`.
    more: Box<[OnceLock<Option<Part>>]>,
}

impl Mapped {
    /// Maps a file of `size` bytes, and as much room to grow. What does not fit in the mapping is left to system calls.
    ///
    /// # Errors
    /// The file cannot be mapped, or the kernel has larger pages.
    pub(super) fn new(file: &File, size: u64) -> io::Result<Self> {
        let unit = UNIT as u64;
        let len = size.saturating_mul(2).clamp(unit, LONGEST).next_multiple_of(unit);
        let more = (LONGEST / len).ilog2() as usize;
        Ok(Self {
            first: Part::new(file, 0, usize::try_from(len).map_err(io::Error::other)?)?,
            more: (0..more).map(|_| OnceLock::new()).collect(),
        })
    }

    /// Fills all of `iov` from `offset` on. Returns false if that needs system calls. Then a part may have been read.
    pub(super) fn read(&self, iov: &IoVecs, offset: u64) -> bool {
        self.part(offset).is_some_and(|(part, at)| part.read(iov, at))
    }

    /// Writes all of `iov` at `offset`. Returns false if that needs system calls. Then a part may have been written.
    pub(super) fn write(&self, iov: &IoVecs, offset: u64) -> bool {
        self.part(offset).is_some_and(|(part, at)| part.write(iov, at))
    }

    /// Records which pages of a range exist. Call this after a system call has transferred all of them. If they were
    /// `written`, they exist; otherwise the kernel is asked.
    pub(super) fn learn(&self, file: &File, offset: u64, len: usize, written: bool) {
        if let Some(number) = self.number(offset)
            && let Some(place) = self.more.get(number)
        {
            // The file has this byte, so it has outgrown the parts before.
            place.get_or_init(|| self.make(file, number));
        }
        if let Some((part, at)) = self.part(offset) {
            part.learn(file, at, len, written);
        }
    }

    /// Forgets the pages of a range, which may have become a hole, or be past the end of the file now.
    pub(super) fn forget(&self, offset: u64, len: u64) {
        let end = offset.saturating_add(len);
        let more = self.more.iter().filter_map(|place| place.get()?.as_ref());
        for part in [&self.first].into_iter().chain(more) {
            let Range { start, end: part_end } = part.range();
            let (from, to) = (offset.max(start), end.min(part_end));
            if from < to {
                part.forget(from - start, to - from);
            }
        }
    }

    /// Returns the index among the later parts of the one with this byte, or `None` for the first part.
    fn number(&self, offset: u64) -> Option<usize> {
        (offset / self.first.range().end)
            .checked_ilog2()
            .map(|number| number as usize)
    }

    /// Returns the part with this byte, and the byte's offset in it, if the part exists.
    #[inline]
    fn part(&self, offset: u64) -> Option<(&Part, u64)> {
        if offset < self.first.range().end {
            return Some((&self.first, offset));
        }
        let part = self.more.get(self.number(offset)?)?.get()?.as_ref()?;
        Some((part, offset - part.range().start))
    }

    /// Maps one of the later parts.
    fn make(&self, file: &File, number: usize) -> Option<Part> {
        let start = self.first.range().end << number;
        let len = usize::try_from(start).ok()?;
        Part::new(file, start, len)
            .inspect_err(|error| tracing::debug!(%error, "cannot map the image: using system calls"))
            .ok()
    }
}
