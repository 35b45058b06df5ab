//! Registers with a context what it runs and polls. The context's thread only.

use std::os::fd::AsRawFd;
use std::rc::{Rc, Weak};

use event_manager::EventSet;

use super::bottom_half::BottomHalf;
use super::context::{AioContext, Inner};
use super::error::Error;
use super::fd::{FdHandler, FdHandlers};
use super::poller::{InProgress, Poller, PollerHandle, Pollers, RemoteWork};
use super::timer::{Timer, Timers};

impl AioContext {
    /// Returns the reference that a registration keeps, to undo itself.
    fn weak(&self) -> Weak<Inner> {
        Rc::downgrade(&self.inner)
    }

    /// Makes a bottom half. `callback` runs once after it was scheduled.
    pub fn bottom_half(&self, callback: impl Fn() + 'static) -> BottomHalf {
        let notify = &self.inner.shared.notify;
        BottomHalf::new(&self.inner.bottom_halves, notify, Rc::new(callback))
    }

    /// Runs `callback` once, in the next pass.
    pub fn oneshot(&self, callback: impl FnOnce() + 'static) {
        self.inner.bottom_halves.push_oneshot(Box::new(callback));
    }

    /// Runs `callback` in every pass in which `source` is ready for one of `events` (level-triggered).
    ///
    /// The handler owns `source`; a callback that reads `source` shares it through an `Rc`. A bare `RawFd` works too,
    /// but must stay open until the handler is dropped.
    ///
    /// # Errors
    ///
    /// The fd is not open, cannot be polled (a regular file) or is already watched.
    pub fn add_fd(
        &self,
        source: impl AsRawFd + 'static,
        events: EventSet,
        callback: impl Fn(EventSet) + 'static,
    ) -> Result<FdHandler, Error> {
        FdHandler::new(
            &self.inner.fds,
            self.weak(),
            Box::new(source),
            events,
            Rc::new(callback),
        )
    }

    /// Makes a timer. It is not armed yet.
    pub fn timer(&self, callback: impl Fn() + 'static) -> Timer {
        Timer::new(self.weak(), Rc::new(callback))
    }

    /// Registers `poller`, which the loop polls before it blocks.
    pub fn add_poller(&self, poller: Rc<dyn Poller>) -> PollerHandle {
        PollerHandle::new(&self.inner.pollers, self.weak(), poller)
    }

    /// Returns the count of what waits for work in progress. It decides which polling window a wait gets.
    #[must_use]
    pub fn in_progress(&self) -> InProgress {
        self.inner.pollers.in_progress().clone()
    }

    /// Makes a part of the context that waits for other processes.
    #[must_use]
    pub fn remote_work(&self) -> RemoteWork {
        RemoteWork::new(self.inner.pollers.remote())
    }
}

impl AsRef<FdHandlers> for Inner {
    fn as_ref(&self) -> &FdHandlers {
        &self.fds
    }
}

impl AsRef<Timers> for Inner {
    fn as_ref(&self) -> &Timers {
        &self.timers
    }
}

impl AsRef<Pollers> for Inner {
    fn as_ref(&self) -> &Pollers {
        &self.pollers
    }
}
