//! Adaptive polling: looking at memory for a while before paying for a sleep and a wakeup.

use std::{
    cell::{Cell, RefCell},
    fmt,
    rc::{Rc, Weak},
};

use super::{AioContext, Inner};

/// Something that can be looked at without a system call: a virtqueue's ring, a completion queue.
///
/// All calls come on the context's thread. While `poll` runs, a loop that it runs does not call it again.
pub trait Poller {
    /// Looks for work and does a bounded amount of it; returns whether there was any.
    fn poll(&self, ctx: &AioContext) -> bool;

    /// Busy polling starts: the peer need not notify until [`poll_end`](Self::poll_end).
    fn poll_begin(&self) {}

    /// The context is about to block: has the peer notify again, and then looks once more. Returns whether there is
    /// work; the context then calls [`poll`](Self::poll) instead of blocking.
    fn poll_end(&self) -> bool {
        false
    }

    /// True while something that it has begun is not over. How long that takes has nothing to do with how long it takes
    /// until there is something new, so both have a polling window of their own.
    fn is_busy(&self) -> bool {
        false
    }
}

/// The pollers of one context; its thread only.
#[derive(Default)]
pub(super) struct Pollers {
    /// Replaced as a whole, so that pollers may add and remove while the list is walked.
    entries: RefCell<Rc<Vec<Rc<Entry>>>>,
    /// Some entry has been told `poll_begin`.
    begun: Cell<bool>,
}

struct Entry {
    poller: Rc<dyn Poller>,
    removed: Cell<bool>,
    running: Cell<bool>,
    /// Told `poll_begin`, not `poll_end`.
    begun: Cell<bool>,
}

impl Entry {
    fn poll(&self, ctx: &AioContext) -> bool {
        if self.removed.get() || self.running.replace(true) {
            return false;
        }
        // A guard: the poller may panic, and others of the context may survive that.
        let _running = Running(&self.running);
        self.poller.poll(ctx)
    }
}

struct Running<'a>(&'a Cell<bool>);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

impl Pollers {
    fn list(&self) -> Rc<Vec<Rc<Entry>>> {
        Rc::clone(&self.entries.borrow())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.borrow().is_empty()
    }

    /// Whether one of them waits for the end of something.
    pub(super) fn are_busy(&self) -> bool {
        self.entries
            .borrow()
            .iter()
            .any(|entry| !entry.removed.get() && entry.poller.is_busy())
    }

    /// Busy polling goes on: peers may not notify.
    pub(super) fn has_begun(&self) -> bool {
        self.begun.get()
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Rc<Entry>>)) {
        let mut entries = self.list().to_vec();
        change(&mut entries);
        // The old list may be the last owner of a poller, whose drop may come back here: it goes without a borrow.
        let old = self.entries.replace(Rc::new(entries));
        drop(old);
    }

    /// Polls each once.
    pub(super) fn poll(&self, ctx: &AioContext) -> bool {
        self.list()
            .iter()
            .fold(false, |progress, entry| entry.poll(ctx) | progress)
    }

    /// Tells those which were not told yet that busy polling starts.
    pub(super) fn begin(&self) {
        for entry in self.list().iter().filter(|entry| !entry.removed.get()) {
            if !entry.begun.replace(true) {
                self.begun.set(true);
                entry.poller.poll_begin();
            }
        }
    }

    /// Ends busy polling; returns whether a poller saw work, so that the context must not block.
    pub(super) fn end(&self) -> bool {
        if !self.begun.replace(false) {
            return false;
        }
        let mut work = false;
        for entry in self.list().iter().filter(|entry| !entry.removed.get()) {
            work |= entry.begun.replace(false) && entry.poller.poll_end();
        }
        work
    }
}

/// A registered [`Poller`]. Dropping it removes the poller, which is not called any more, `poll_end` included.
pub struct PollerHandle {
    /// Owned by the list: a poller may own its handle without keeping itself alive.
    entry: Weak<Entry>,
    ctx: Weak<Inner>,
}

impl PollerHandle {
    pub(super) fn new(ctx: &AioContext, poller: Rc<dyn Poller>) -> Self {
        let (removed, running, begun) = (Cell::new(false), Cell::new(false), Cell::new(false));
        let entry = Rc::new(Entry {
            poller,
            removed,
            running,
            begun,
        });
        ctx.inner
            .pollers
            .change(|entries| entries.push(Rc::clone(&entry)));
        Self {
            entry: Rc::downgrade(&entry),
            ctx: Rc::downgrade(&ctx.inner),
        }
    }
}

impl Drop for PollerHandle {
    fn drop(&mut self) {
        let (Some(inner), Some(entry)) = (self.ctx.upgrade(), self.entry.upgrade()) else {
            return;
        };
        entry.removed.set(true);
        inner
            .pollers
            .change(|entries| entries.retain(|other| !Rc::ptr_eq(other, &entry)));
    }
}

impl fmt::Debug for PollerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PollerHandle").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Worker(Cell<bool>);

    impl Poller for Worker {
        fn poll(&self, _ctx: &AioContext) -> bool {
            false
        }

        fn is_busy(&self) -> bool {
            self.0.get()
        }
    }

    #[test]
    fn a_context_is_busy_while_one_of_its_pollers_is() {
        let ctx = AioContext::new().expect("a context");
        let workers = [false; 3].map(|busy| Rc::new(Worker(Cell::new(busy))));
        let [_first, second, _third] = workers
            .each_ref()
            .map(|worker| ctx.add_poller(Rc::clone(worker) as _));
        let is_busy = || ctx.inner.pollers.are_busy();
        assert!(!is_busy());
        workers[1].0.set(true);
        assert!(is_busy());
        drop(second);
        assert!(!is_busy());
    }
}
