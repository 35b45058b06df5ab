//! Bottom halves: callbacks that any thread can ask for.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    fmt,
    rc::{Rc, Weak},
};

use super::{
    AioContext, Inner,
    bh_word::{BhHandle, BhWord},
    notify::Notify,
};
use crate::sync::Arc;

pub(super) type Callback = Rc<dyn Fn(&AioContext)>;
type Oneshot = Box<dyn FnOnce(&AioContext)>;

/// The bottom halves of one context; its thread only.
#[derive(Default)]
pub(super) struct BottomHalves {
    words: RefCell<Vec<Rc<Word>>>,
    oneshots: RefCell<VecDeque<Oneshot>>,
}

struct Word {
    shared: Arc<BhWord>,
    /// Bits that were scheduled with `schedule_idle`.
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

/// The place of a one-bit mask.
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

    /// Whether something was scheduled, not counting what may wait for the next wakeup.
    pub(super) fn is_pending(&self) -> bool {
        self.words.borrow().iter().any(|word| word.shared.pending() != 0)
            || !self.oneshots.borrow().is_empty()
    }

    /// Whether something was scheduled that may wait for the next wakeup.
    pub(super) fn is_idle_pending(&self) -> bool {
        self.words.borrow().iter().any(|word| word.idle.get() != 0)
    }

    /// Runs what is scheduled now; what is scheduled meanwhile waits for the next pass. Idle ones are no progress.
    ///
    /// A bit stays set until its turn comes. So a pass that a callback runs serves what is left of this one.
    pub(super) fn run(&self, ctx: &AioContext) -> bool {
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
                    callback(ctx);
                    progress |= scheduled;
                }
            }
        }
        self.run_oneshots(ctx) | progress
    }

    fn snapshot(&self, number: usize) -> Option<(Rc<Word>, u64)> {
        let words = self.words.borrow();
        let word = words.get(number)?;
        Some((Rc::clone(word), word.shared.pending() | word.idle.get()))
    }

    fn run_oneshots(&self, ctx: &AioContext) -> bool {
        let mut due = self.oneshots.borrow().len();
        let progress = due > 0;
        while due > 0 {
            due -= 1;
            let Some(callback) = self.oneshots.borrow_mut().pop_front() else {
                break;
            };
            callback(ctx);
        }
        progress
    }
}

/// A callback of a context that can be scheduled from any thread. Dropping it deletes it, also in its own callback.
///
/// It belongs to the context's thread; [`handle`](Self::handle) is for the others.
pub struct BottomHalf {
    handle: BhHandle,
    /// Gone with the context.
    word: Weak<Word>,
}

impl BottomHalf {
    pub(super) fn new(inner: &Inner, callback: Callback) -> Self {
        let (word, handle) = inner.bottom_halves.add(&inner.shared.notify, callback);
        Self { handle, word }
    }

    /// Asks for one run of the callback; see [`BhHandle::schedule`].
    pub fn schedule(&self) {
        self.handle.schedule();
    }

    /// Asks for one run with the next wakeup of the context, in about 10 ms at the latest.
    pub fn schedule_idle(&self) {
        if let Some(word) = self.word.upgrade() {
            word.idle.set(word.idle.get() | self.handle.mask());
        }
    }

    /// Un-schedules it. A run that has begun goes on.
    pub fn cancel(&self) {
        if let Some(word) = self.word.upgrade() {
            word.take_idle(self.handle.mask());
        }
        self.handle.cancel();
    }

    /// What other threads schedule it with.
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
        // What the callback owns may be anything, bottom halves too; it goes without a borrow.
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
