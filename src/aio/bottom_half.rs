//! Bottom halves: callbacks that any thread can schedule.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::rc::{Rc, Weak};

use super::bh_word::{BhHandle, BhWord};
use super::notify::Notify;
use crate::sync::Arc;

pub(super) type Callback = Rc<dyn Fn()>;
type Oneshot = Box<dyn FnOnce()>;

/// The bottom halves of one context. Used only by its thread.
#[derive(Default)]
pub(super) struct BottomHalves {
    words: RefCell<Vec<Rc<Word>>>,
    oneshots: RefCell<VecDeque<Oneshot>>,
}

struct Word {
    shared: Arc<BhWord>,
    /// Bits scheduled with `schedule_idle`.
    idle: Cell<u64>,
    callbacks: RefCell<[Option<Callback>; 64]>,
}

impl Word {
    fn new() -> Self {
        let callbacks = RefCell::new([const { None }; 64]);
        Self {
            shared: Arc::new(BhWord::new()),
            idle: Cell::new(0),
            callbacks,
        }
    }

    fn take_idle(&self, mask: u64) -> bool {
        let idle = self.idle.get();
        self.idle.set(idle & !mask);
        idle & mask != 0
    }

    fn callback(&self, mask: u64) -> Option<Callback> {
        self.callbacks.borrow()[index(mask)].clone()
    }
}

/// Returns the position of the bit in a one-bit mask.
fn index(mask: u64) -> usize {
    mask.trailing_zeros() as usize
}

impl BottomHalves {
    fn add(&self, notify: &Arc<Notify>, callback: Callback) -> (Weak<Word>, BhHandle) {
        let (word, handle) = self.allocate(notify);
        word.callbacks.borrow_mut()[index(handle.mask())] = Some(callback);
        (Rc::downgrade(&word), handle)
    }

    fn allocate(&self, notify: &Arc<Notify>) -> (Rc<Word>, BhHandle) {
        let mut words = self.words.borrow_mut();
        for word in words.iter() {
            if let Some(handle) = BhWord::allocate(&word.shared, notify) {
                return (Rc::clone(word), handle);
            }
        }
        let word = Rc::new(Word::new());
        words.push(Rc::clone(&word));
        let handle = BhWord::allocate(&word.shared, notify).expect("a new word has free bits");
        (word, handle)
    }

    #[cfg(all(test, not(loom)))]
    pub(super) fn capacity(&self) -> usize {
        64 * self.words.borrow().len()
    }

    pub(super) fn push_oneshot(&self, callback: Oneshot) {
        self.oneshots.borrow_mut().push_back(callback);
    }

    /// Returns whether anything is scheduled, apart from idle bottom halves.
    pub(super) fn is_pending(&self) -> bool {
        self.words.borrow().iter().any(|word| word.shared.pending() != 0)
            || !self.oneshots.borrow().is_empty()
    }

    /// Returns whether an idle bottom half is scheduled, which may wait for the next wakeup.
    pub(super) fn is_idle_pending(&self) -> bool {
        self.words.borrow().iter().any(|word| word.idle.get() != 0)
    }

    /// Runs what is scheduled now and returns whether it made progress. Idle bottom halves do not count as progress.
    ///
    /// What callbacks schedule waits for the next pass. A bit stays set until its turn comes, so if a callback runs a
    /// nested pass, that pass serves the rest of this one.
    pub(super) fn run(&self) -> bool {
        let mut progress = false;
        let mut number = 0;
        while let Some((word, mut due)) = self.snapshot(number) {
            number += 1;
            while due != 0 {
                let mask = 1 << due.trailing_zeros();
                due &= !mask;
                let scheduled = word.shared.take(mask);
                if (word.take_idle(mask) || scheduled)
                    && let Some(callback) = word.callback(mask)
                {
                    callback();
                    progress |= scheduled;
                }
            }
        }
        self.run_oneshots() | progress
    }

    fn snapshot(&self, number: usize) -> Option<(Rc<Word>, u64)> {
        let words = self.words.borrow();
        let word = words.get(number)?;
        Some((Rc::clone(word), word.shared.pending() | word.idle.get()))
    }

    fn run_oneshots(&self) -> bool {
        let mut due = self.oneshots.borrow().len();
        let progress = due > 0;
        while due > 0 {
            due -= 1;
            let Some(callback) = self.oneshots.borrow_mut().pop_front() else {
                break;
            };
            callback();
        }
        progress
    }
}

/// A callback of a context. Dropping the `BottomHalf` deletes the callback; the callback itself may do so.
///
/// A `BottomHalf` belongs to the context's thread; other threads schedule it through its [`handle`](Self::handle).
pub struct BottomHalf {
    handle: BhHandle,
    /// Dead once the context has ended.
    word: Weak<Word>,
}

impl BottomHalf {
    pub(super) fn new(bottom_halves: &BottomHalves, notify: &Arc<Notify>, callback: Callback) -> Self {
        let (word, handle) = bottom_halves.add(notify, callback);
        Self { handle, word }
    }

    /// Asks for one run of the callback; see [`BhHandle::schedule`].
    pub fn schedule(&self) {
        self.handle.schedule();
    }

    /// Asks for one run at the context's next wakeup, in about 10 ms at the latest.
    pub fn schedule_idle(&self) {
        if let Some(word) = self.word.upgrade() {
            word.idle.set(word.idle.get() | self.handle.mask());
        }
    }

    /// Unschedules the bottom half. A run that has started continues.
    pub fn cancel(&self) {
        if let Some(word) = self.word.upgrade() {
            word.take_idle(self.handle.mask());
        }
        self.handle.cancel();
    }

    /// Returns a handle with which any thread can schedule the bottom half.
    #[must_use]
    pub fn handle(&self) -> BhHandle {
        self.handle.clone()
    }

    pub(crate) fn is_scheduled(&self) -> bool {
        self.handle.is_scheduled()
    }
}

impl Drop for BottomHalf {
    fn drop(&mut self) {
        let Some(word) = self.word.upgrade() else { return };
        word.take_idle(self.handle.mask());
        let callback = word.callbacks.borrow_mut()[index(self.handle.mask())].take();
        // Dropped without a borrow: the callback may own anything, even bottom halves.
        drop(callback);
    }
}

impl fmt::Debug for BottomHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BottomHalf")
            .field("handle", &self.handle)
            .finish_non_exhaustive()
    }
}
