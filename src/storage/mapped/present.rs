//! The pages of a part that are known to exist. Any thread.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Number of pages in a word of the map.
pub(super) const WORD: usize = 64;

/// Vain looks for new pages in a row, after which only one request in `PAUSE` is worth a look.
const CHANCE: u32 = 8;
const PAUSE: u32 = 16;

/// A map with a bit for each page. The kernel keeps the data of the pages coherent, so the bits are only hints.
#[derive(Debug)]
pub(super) struct Present {
    words: Box<[AtomicU64]>,
    /// Number of vain or omitted looks for new pages since the last one that found any. Only a hint.
    vain: AtomicU32,
    /// Number of times that pages were forgotten.
    forgotten: AtomicU32,
}

/// The time at which a look for new pages begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Since(u32);

impl Present {
    /// Makes a map of that many words, in which no page is known. Words that are never set take no memory.
    pub(super) fn new(words: usize) -> Self {
        let words = vec![0_u64; words].into_boxed_slice();
        Self {
            // SAFETY: both types have the same layout.
            words: unsafe { Box::from_raw(Box::into_raw(words) as *mut [AtomicU64]) },
            vain: AtomicU32::new(0),
            forgotten: AtomicU32::new(0),
        }
    }

    /// Returns whether this page is known to exist.
    pub(super) fn has(&self, page: usize) -> bool {
        self.words[page / WORD].load(Ordering::Relaxed) & 1 << (page % WORD) != 0
    }

    /// Records that a page exists.
    pub(super) fn add(&self, page: usize) {
        if !self.has(page) {
            self.words[page / WORD].fetch_or(1 << (page % WORD), Ordering::Relaxed);
        }
    }

    /// Returns the time, for [`add_word`](Self::add_word). Call this before the kernel is asked which pages exist.
    pub(super) fn now(&self) -> Since {
        // SeqCst, here and below: either `forget` sees the new bits, or `add_word` sees that it has run.
        Since(self.forgotten.load(Ordering::SeqCst))
    }

    /// Records the pages of a word that have existed after `since`. Those that were forgotten meanwhile may be holes. Returns
    /// whether any was new.
    pub(super) fn add_word(&self, word: usize, bits: u64, Since(forgotten): Since) -> bool {
        let before = self.words[word].fetch_or(bits, Ordering::SeqCst);
        if self.forgotten.load(Ordering::SeqCst) != forgotten {
            self.words[word].store(0, Ordering::Relaxed);
        }
        bits & !before != 0
    }

    /// Forgets all pages of these words.
    pub(super) fn forget(&self, words: Range<usize>) {
        self.forgotten.fetch_add(1, Ordering::SeqCst);
        for word in &self.words[words] {
            if word.load(Ordering::SeqCst) != 0 {
                word.store(0, Ordering::Relaxed);
            }
        }
    }

    /// Counts a request with a page that is not known. Returns whether a look for new pages is worth while.
    pub(super) fn is_worth_a_look(&self) -> bool {
        let vain = self.vain.load(Ordering::Relaxed);
        self.vain.store(vain.wrapping_add(1), Ordering::Relaxed);
        vain < CHANCE || vain.is_multiple_of(PAUSE)
    }

    /// A look has found new pages.
    pub(super) fn has_found(&self) {
        self.vain.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_are_forgotten_during_a_look_are_not_added() {
        let present = Present::new(2);
        let since = present.now();
        present.forget(0..1);
        present.add_word(0, 0b101, since);
        assert!(!present.has(0) && !present.has(2));
        assert!(present.add_word(0, 0b101, present.now()));
        assert!(present.has(0) && !present.has(1) && present.has(2));
        assert!(!present.add_word(0, 0b101, present.now()), "nothing is new");
    }

    #[test]
    fn after_vain_looks_few_requests_are_worth_another() {
        let present = Present::new(1);
        let looks = || (0..160).filter(|_| present.is_worth_a_look()).count();
        assert!((10..30).contains(&looks()));
        present.has_found();
        assert!((0..CHANCE).all(|_| present.is_worth_a_look()));
    }
}
