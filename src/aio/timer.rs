//! Timers on the monotonic clock. All timers of a context share one timerfd.
//!
//! The timerfd is set only when the context is about to block, and only if it would otherwise fire too late. So a timer
//! that is armed and cancelled between two waits costs no system call.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

use super::bottom_half::Callback;
use super::error::Error;

/// A deadline and a number that makes the key unique. Timers with equal deadlines run in the order of arming.
type Key = (Instant, u64);

/// The timers of one context. Used only by its thread.
pub(super) struct Timers {
    armed: RefCell<BTreeMap<Key, Rc<Entry>>>,
    next_number: Cell<u64>,
    fd: RefCell<TimerFd>,
    /// When the timerfd will fire.
    programmed: Cell<Option<Instant>>,
}

struct Entry {
    key: Cell<Option<Key>>,
    callback: RefCell<Option<Callback>>,
}

impl Timers {
    pub(super) fn new() -> Result<Self, Error> {
        let fd = TimerFd::new().map_err(|err| Error::TimerFd(err.into()))?;
        Ok(Self {
            armed: RefCell::default(),
            next_number: Cell::new(0),
            fd: RefCell::new(fd),
            programmed: Cell::new(None),
        })
    }

    pub(super) fn with_fd<T>(&self, f: impl FnOnce(&TimerFd) -> T) -> T {
        f(&self.fd.borrow())
    }

    fn arm(&self, entry: &Rc<Entry>, deadline: Instant) {
        self.cancel(entry);
        let key = (deadline, self.next_number.replace(self.next_number.get() + 1));
        entry.key.set(Some(key));
        self.armed.borrow_mut().insert(key, Rc::clone(entry));
    }

    fn cancel(&self, entry: &Entry) {
        if let Some(key) = entry.key.take() {
            self.armed.borrow_mut().remove(&key);
        }
    }

    /// Returns the earliest deadline.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.armed.borrow().first_key_value().map(|(key, _)| key.0)
    }

    /// Makes sure that the timerfd fires at the earliest deadline, or before.
    pub(super) fn program(&self) -> Result<(), Error> {
        let Some(deadline) = self.next_deadline() else {
            return Ok(());
        };
        let now = Instant::now();
        if self
            .programmed
            .get()
            .is_some_and(|programmed| programmed > now && programmed <= deadline)
        {
            return Ok(());
        }
        // A zero duration would disarm the timerfd.
        let delay = deadline
            .saturating_duration_since(now)
            .max(Duration::from_nanos(1));
        self.fd
            .borrow_mut()
            .reset(delay, None)
            .map_err(|err| Error::TimerFd(err.into()))?;
        self.programmed.set(Some(deadline));
        Ok(())
    }

    /// Runs the timers that are due. A timer armed by their callbacks waits for the next pass.
    pub(super) fn run(&self) -> bool {
        if self.armed.borrow().is_empty() {
            return false;
        }
        let (now, numbers) = (Instant::now(), self.next_number.get());
        let mut progress = false;
        while let Some(entry) = self.take_due(now, numbers) {
            let callback = entry.callback.borrow().clone();
            if let Some(callback) = callback {
                callback();
                progress = true;
            }
        }
        progress
    }

    fn take_due(&self, now: Instant, numbers: u64) -> Option<Rc<Entry>> {
        let mut armed = self.armed.borrow_mut();
        let key = *armed
            .range(..=(now, u64::MAX))
            .find(|(key, _)| key.1 < numbers)?
            .0;
        let entry = armed.remove(&key)?;
        entry.key.set(None);
        Some(entry)
    }
}

/// A callback that runs at a given time. Dropping the timer deletes the callback; the callback itself may do so.
///
/// A timer belongs to the context's thread. The timer owns its callback, so the callback must not own the timer.
pub struct Timer {
    entry: Rc<Entry>,
    ctx: Weak<dyn AsRef<Timers>>,
}

impl Timer {
    pub(super) fn new(ctx: Weak<dyn AsRef<Timers>>, callback: Callback) -> Self {
        let entry = Entry {
            key: Cell::new(None),
            callback: RefCell::new(Some(callback)),
        };
        Self {
            entry: Rc::new(entry),
            ctx,
        }
    }

    /// Runs the callback once at `deadline`, which replaces the previous deadline. If `deadline` has passed, the
    /// callback runs in the next pass.
    pub fn arm(&self, deadline: Instant) {
        if let Some(ctx) = self.ctx.upgrade() {
            (*ctx).as_ref().arm(&self.entry, deadline);
        }
    }

    /// Runs the callback once after `delay`; see [`arm`](Self::arm).
    pub fn arm_in(&self, delay: Duration) {
        self.arm(Instant::now() + delay);
    }

    /// Disarms the timer.
    pub fn cancel(&self) {
        if let Some(ctx) = self.ctx.upgrade() {
            (*ctx).as_ref().cancel(&self.entry);
        }
    }

    /// Returns whether the timer is armed. A timer is no longer armed when its callback runs.
    #[must_use]
    pub fn is_armed(&self) -> bool {
        self.entry.key.get().is_some()
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.cancel();
        let callback = self.entry.callback.borrow_mut().take();
        // Dropped without a borrow: the callback may own anything, even timers.
        drop(callback);
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timer")
            .field("armed", &self.is_armed())
            .finish_non_exhaustive()
    }
}
