//! The part of bottom halves that threads share: one bit each.
//!
//! A word holds 64 bottom halves. Scheduling a bottom half sets its bit, so repeated requests coalesce; looking for
//! work loads one word. Words are only ever added, by the context's thread, so the scan takes no lock.
//!
//! A bit is freed when the bottom half and all its handles are gone. So a handle that outlives its bottom half may set
//! a bit that no callback serves, but never the bit of a later bottom half.

use super::notify::Notify;
use crate::sync::{Arc, AtomicU64, Ordering};

/// 64 bottom halves of one context.
#[derive(Debug)]
pub(crate) struct BhWord {
    /// Scheduled bottom halves.
    pending: AtomicU64,
    /// Bits that belong to no bottom half.
    free: AtomicU64,
}

impl BhWord {
    pub(crate) fn new() -> Self {
        Self {
            pending: AtomicU64::new(0),
            free: AtomicU64::new(u64::MAX),
        }
    }

    /// Takes a free bit. Called only by the context's thread.
    pub(crate) fn allocate(word: &Arc<Self>, notify: &Arc<Notify>) -> Option<BhHandle> {
        let free = word.free.load(Ordering::Relaxed);
        if free == 0 {
            return None;
        }
        let mask = 1 << free.trailing_zeros();
        // Acquire: pairs with the Release in `BhBit::drop`; its reset of the pending bit comes before our use.
        word.free.fetch_and(!mask, Ordering::Acquire);
        let bit = BhBit {
            word: Arc::clone(word),
            notify: Arc::clone(notify),
            mask,
        };
        Some(BhHandle { bit: Arc::new(bit) })
    }

    /// Returns the bits that are scheduled now.
    pub(crate) fn pending(&self) -> u64 {
        // Relaxed: a hint; `take` and `Notify::announce` order.
        self.pending.load(Ordering::Relaxed)
    }

    /// Unschedules the bits of `mask`; returns whether any of them was scheduled.
    pub(crate) fn take(&self, mask: u64) -> bool {
        // Acquire: pairs with the Release in `BhHandle::schedule`; the callback sees all that was written before that.
        // AcqRel, so that an acquirer of the same word's next value also sees what earlier schedulers wrote.
        self.pending.fetch_and(!mask, Ordering::AcqRel) & mask != 0
    }
}

#[derive(Debug)]
struct BhBit {
    word: Arc<BhWord>,
    notify: Arc<Notify>,
    mask: u64,
}

impl Drop for BhBit {
    fn drop(&mut self) {
        self.word.pending.fetch_and(!self.mask, Ordering::Relaxed);
        // Release: pairs with the Acquire in `BhWord::allocate`.
        self.word.free.fetch_or(self.mask, Ordering::Release);
    }
}

/// Schedules a bottom half from any thread.
///
/// A handle may outlive its bottom half and the context; then scheduling does nothing.
#[derive(Clone, Debug)]
pub struct BhHandle {
    bit: Arc<BhBit>,
}

impl BhHandle {
    /// Asks for one run of the callback on the context's thread, which sees all that the caller wrote before.
    ///
    /// Asking again before that run starts changes nothing. Wait-free: costs one atomic operation, and one write to an
    /// eventfd if the context's thread sleeps.
    pub fn schedule(&self) {
        let bit = &*self.bit;
        // Release: pairs with the Acquire in `BhWord::take`.
        if bit.word.pending.fetch_or(bit.mask, Ordering::Release) & bit.mask == 0 {
            bit.notify.notify();
        }
    }

    /// Unschedules the bottom half. A run that has started continues.
    pub fn cancel(&self) {
        self.bit.word.take(self.bit.mask);
    }

    /// Returns whether a scheduled run has not started yet.
    #[must_use]
    pub fn is_scheduled(&self) -> bool {
        self.bit.word.pending() & self.bit.mask != 0
    }

    pub(crate) fn mask(&self) -> u64 {
        self.bit.mask
    }
}
