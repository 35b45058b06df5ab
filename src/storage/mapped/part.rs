//! A part of a file in memory, mapped. Any thread.
//!
//! Only pages that exist are accessed. An access to a hole would allocate a page, even to read it, and could find the
//! file system full. So a map of bits has the pages that are known to exist, and the caller executes all other requests
//! with system calls. A page may disappear again: a discard forgets its pages here, and if another process punches a
//! hole, the access allocates a page of zeroes, which is what a hole reads as.
//!
//! If the file was truncated, or the file system is full, the access raises SIGBUS. `guard` then puts a page of zeroes in
//! its place. From then on, requests for this page are left to system calls, too. In the last page of a file that was
//! truncated, the bytes past the end exist, without a signal: they read as zeroes, and writes to them are lost. But the
//! next page is gone then. So each request ends with a look at the page after its range, which must exist as well.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr;

use rustix::fs::{SeekFrom, seek};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::present::{Present, WORD};
use crate::guard::{Guarded, User, losses};
use crate::io::{IoVecs, own};
use crate::sys::residency::residency;

/// Size of a page in bytes.
const PAGE: usize = 4096;

/// The length of a part is a multiple of this: a word in the map of bits.
pub(super) const UNIT: usize = PAGE * WORD;

/// A part of a file in memory, mapped. Offsets count from the start of the part.
#[derive(Debug)]
pub(super) struct Part {
    /// The offset of the part in the file.
    at: u64,
    present: Present,
    /// Dropped before the memory is unmapped: the handler must not touch memory that is no longer ours.
    guarded: Guarded,
    pages: Pages,
}

/// The mapped pages. There may be more than the file has, because it may grow.
#[derive(Debug)]
struct Pages {
    start: *mut u8,
    len: usize,
    writable: bool,
}

// SAFETY: the address stays valid until the drop, and the memory is shared with other processes anyway.
unsafe impl Send for Pages {}
// SAFETY: as above. Accesses at the same time can only mix up the data of requests that overlap.
unsafe impl Sync for Pages {}

impl Pages {
    /// Maps a file for reading, and for writing if that is allowed: a file may be open for reading only, or be sealed.
    fn map(file: &File, at: u64, len: usize) -> io::Result<Self> {
        let map = |protection| {
            // SAFETY: a new mapping at an address that the kernel chooses.
            let start = unsafe { mmap(ptr::null_mut(), len, protection, MapFlags::SHARED, file, at) }?;
            io::Result::Ok(Self {
                start: start.cast(),
                len,
                writable: protection.contains(ProtFlags::WRITE),
            })
        };
        map(ProtFlags::READ | ProtFlags::WRITE).or_else(|_| map(ProtFlags::READ))
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: mapped with this length, and used by nobody any more.
        let _ = unsafe { munmap(self.start.cast(), self.len) };
    }
}

impl Part {
    /// Maps `len` bytes of a file from `at` on: multiples of [`UNIT`]. The file may end before them.
    ///
    /// # Errors
    /// The file cannot be mapped, or the kernel has larger pages.
    pub(super) fn new(file: &File, at: u64, len: usize) -> io::Result<Self> {
        // SAFETY: reads a constant.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        if usize::try_from(page) != Ok(PAGE) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let pages = Pages::map(file, at, len)?;
        Ok(Self {
            at,
            present: Present::new(len / UNIT),
            guarded: Guarded::new(pages.start, len, PAGE, User::Ourselves)?,
            pages,
        })
    }

    /// Fills all of `iov` from `offset` on. Returns false if that needs system calls. Then a part may have been read.
    pub(super) fn read(&self, iov: &IoVecs, offset: u64) -> bool {
        let Some(Range { mut start, end }) = self.existing(offset, iov.len()) else {
            return false;
        };
        let first = start;
        for range in iov.as_slice() {
            let guest = own(range.iov_base, iov.own_distance());
            // SAFETY: the source is in the mapping, see `existing`. The owner of the list guarantees the range. Accesses
            // by others at the same time can only spoil this data.
            unsafe { ptr::copy_nonoverlapping(self.pages.start.add(start), guest, range.iov_len) };
            start += range.iov_len;
        }
        self.still_exist(first..end) && !iov.has_lost()
    }

    /// Writes all of `iov` at `offset`. Returns false if that needs system calls. Then a part may have been written.
    ///
    /// The data is copied twice. Guest memory that is lost reads as zeroes, and these must not get into the file.
    pub(super) fn write(&self, iov: &IoVecs, offset: u64) -> bool {
        let Some(Range { mut start, end }) = self.existing(offset, iov.len()) else {
            return false;
        };
        if !self.pages.writable {
            return false;
        }
        let first = start;
        let mut piece = [MaybeUninit::<u8>::uninit(); PAGE];
        for range in iov.as_slice() {
            let guest = own(range.iov_base, iov.own_distance());
            for from in (0..range.iov_len).step_by(PAGE) {
                let len = (range.iov_len - from).min(PAGE);
                // SAFETY: the owner of the list guarantees the range, and the piece has a page.
                unsafe { ptr::copy_nonoverlapping(guest.add(from), piece.as_mut_ptr().cast(), len) };
                if iov.has_lost() {
                    return false;
                }
                // SAFETY: the target is in the mapping, see `existing`. Accesses by others at the same time can only
                // spoil this data.
                unsafe { ptr::copy_nonoverlapping(piece.as_ptr().cast(), self.pages.start.add(start), len) };
                start += len;
            }
        }
        self.still_exist(first..end)
    }

    /// Records which pages of a range exist. Call this after a system call has transferred all of them. If they were
    /// `written`, they exist; otherwise the kernel is asked.
    pub(super) fn learn(&self, file: &File, offset: u64, len: usize, written: bool) {
        let Some(range) = self.place(offset, len) else {
            return;
        };
        let (mut page, end) = (range.start / PAGE, range.end.div_ceil(PAGE));
        if written {
            (page..end).for_each(|page| self.present.add(page));
            page = end;
        }
        // With the page after it: see `existing`.
        let end = (end + 1).min(self.pages.len / PAGE);
        if !self.present.is_worth_a_look() {
            return;
        }
        let found = match self.look(page..end) {
            Some(found) => found,
            None => self.seek(file, page..end),
        };
        if found {
            self.present.has_found();
        }
    }

    /// Looks for the pages of whole words, with one call for each word. Returns whether it has found any, or `None` if the
    /// kernel does not tell. A page that was moved to swap is not found.
    fn look(&self, pages: Range<usize>) -> Option<bool> {
        let since = self.present.now();
        if !self.is_told() {
            return None;
        }
        let mut found = false;
        for word in pages.start / WORD..pages.end.div_ceil(WORD) {
            let mut resident = [0; WORD];
            residency(self.pages.start.wrapping_add(word * UNIT), &mut resident).ok()?;
            let bits = |bits, (place, page): (usize, &u8)| bits | u64::from(page & 1) << place;
            let bits = resident.iter().enumerate().fold(0, bits);
            found |= self.present.add_word(word, bits, since);
        }
        Some(found)
    }

    /// Returns whether the kernel tells this thread which pages of the file are in memory. A thread that may not write to
    /// the file is told that all are, even those after its end, where the last page of a part usually is.
    fn is_told(&self) -> bool {
        let mut last = [1];
        let at = self.pages.start.wrapping_add(self.pages.len - PAGE);
        residency(at, &mut last).is_ok() && last == [0]
    }

    /// Looks for each page in turn. Returns whether it has found any.
    fn seek(&self, file: &File, pages: Range<usize>) -> bool {
        let Range { start: mut page, end } = pages;
        let mut found = false;
        while page < end {
            if !self.present.has(page) {
                // In a hole, this finds the next data. Seeking is harmless, because nothing uses the position.
                let from = self.at + (page * PAGE) as u64;
                let data = seek(file, SeekFrom::Data(from)).map_or(u64::MAX, |data| data - self.at);
                let data = usize::try_from(data).map_or(end, |data| data / PAGE);
                if data > page {
                    page = data;
                    continue;
                }
                self.present.add(page);
                found = true;
            }
            page += 1;
        }
        found
    }

    /// Forgets the pages of a range, which may have become a hole.
    pub(super) fn forget(&self, offset: u64, len: u64) {
        let Some(range) = usize::try_from(len).ok().and_then(|len| self.place(offset, len)) else {
            return;
        };
        // Whole words: the pages around the range are found again.
        self.present.forget(range.start / UNIT..range.end.div_ceil(UNIT));
    }

    /// Returns the bytes of the file that are mapped.
    #[inline]
    pub(super) fn range(&self) -> Range<u64> {
        self.at..self.at + self.pages.len as u64
    }

    /// Returns the place of these bytes in the mapping, if it has them.
    fn place(&self, offset: u64, len: usize) -> Option<Range<usize>> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(len)?;
        (end <= self.pages.len).then_some(start..end)
    }

    /// Returns the place of these bytes in the mapping, if all of their pages and the page after them are known to exist
    /// and none is lost.
    fn existing(&self, offset: u64, len: usize) -> Option<Range<usize>> {
        let range = self.place(offset, len)?;
        let whole = with_next(&range);
        if whole.end > self.pages.len {
            return None;
        }
        let mut pages = whole.start / PAGE..whole.end / PAGE;
        let exist = pages.all(|page| self.present.has(page)) && !self.has_lost(whole);
        exist.then_some(range)
    }

    /// Returns whether the pages of a range that [`existing`](Self::existing) returned are still those of the file. Call
    /// this after they have been accessed.
    fn still_exist(&self, range: Range<usize>) -> bool {
        let whole = with_next(&range);
        // SAFETY: in the mapping, see `existing`.
        unsafe { self.pages.start.add(whole.end - PAGE).read_volatile() };
        !self.has_lost(whole)
    }

    /// Returns whether an access has found a page of this range lost.
    fn has_lost(&self, range: Range<usize>) -> bool {
        losses() > 0
            && self
                .guarded
                .has_lost(self.pages.start.wrapping_add(range.start), range.len())
    }
}

/// Returns the pages of a range, and the one after it.
fn with_next(range: &Range<usize>) -> Range<usize> {
    range.start / PAGE * PAGE..range.end.next_multiple_of(PAGE) + PAGE
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::thread;

    use super::*;

    const PAGES: usize = 2 * WORD;

    /// Makes a file of [`PAGES`] pages, of which every third one exists.
    fn file_with_holes() -> File {
        let file = tempfile::tempfile_in("/dev/shm").expect("make a file");
        file.set_len((PAGES * PAGE) as u64).expect("extend it");
        for page in (0..PAGES).step_by(3) {
            file.write_all_at(&[1], (page * PAGE) as u64).expect("write");
        }
        file
    }

    /// Maps the file and some room after it.
    fn map(file: &File) -> Part {
        Part::new(file, 0, (PAGES + WORD) * PAGE).expect("map the file")
    }

    fn present(part: &Part) -> Vec<usize> {
        (0..PAGES + WORD).filter(|page| part.present.has(*page)).collect()
    }

    #[test]
    fn a_look_finds_the_pages_around_as_well() {
        let file = file_with_holes();
        let part = map(&file);
        assert!(part.is_told());
        part.learn(&file, 0, PAGE, false);
        let all: Vec<usize> = (0..PAGES).step_by(3).collect();
        assert_eq!(present(&part), all[..WORD.div_ceil(3)]);
        part.learn(&file, ((WORD - 1) * PAGE) as u64, PAGE, false);
        assert_eq!(present(&part), all);
    }

    #[test]
    fn without_the_kernels_word_each_page_is_asked_for() {
        let file = file_with_holes();
        let part = map(&file);
        assert!(part.seek(&file, 0..4));
        assert_eq!(present(&part), [0, 3]);
        assert!(!part.seek(&file, 0..4));
    }

    #[test]
    fn a_kernel_that_says_all_pages_exist_is_not_believed() {
        let file = file_with_holes();
        let found = thread::spawn(move || {
            // SAFETY: takes a number only, and changes this thread.
            unsafe { libc::setfsuid(65534) };
            let part = map(&file);
            part.learn(&file, 0, PAGE, false);
            present(&part).len()
        });
        // Only root can become another user, who may not write to the file.
        let found = found.join().unwrap();
        let expected = if rustix::process::geteuid().is_root() {
            1
        } else {
            WORD.div_ceil(3)
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn pages_around_a_forgotten_one_are_forgotten_too() {
        let file = file_with_holes();
        let part = map(&file);
        part.learn(&file, 0, PAGE, false);
        part.forget(0, PAGE as u64);
        assert!(present(&part).is_empty());
    }
}
