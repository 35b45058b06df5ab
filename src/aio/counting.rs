//! A poller for tests, which counts what the context does with it.

use std::cell::Cell;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use super::poller::{Poller, RemoteWork};

/// A poller that finds work whenever the test says so.
#[derive(Default)]
pub(super) struct Counting {
    remote: Option<RemoteWork>,
    pub(super) finds: Cell<bool>,
    /// A look takes this long.
    pub(super) takes: Cell<Duration>,
    /// Polling ends with work left.
    pub(super) left: Cell<bool>,
    pub(super) polls: Cell<u64>,
    pub(super) begun: Cell<u64>,
    pub(super) ended: Cell<u64>,
}

impl Counting {
    /// Makes one that may wait for others.
    pub(super) fn beside(remote: RemoteWork) -> Rc<Self> {
        Rc::new(Self {
            remote: Some(remote),
            ..Self::default()
        })
    }

    /// Begins or ends to wait for others.
    pub(super) fn wait_for_others(&self, waits: bool) {
        self.remote.as_ref().expect("made with it").set(waits);
    }
}

impl Poller for Counting {
    fn poll(&self) -> bool {
        self.polls.set(self.polls.get() + 1);
        if !self.takes.get().is_zero() {
            thread::sleep(self.takes.get());
        }
        self.finds.get()
    }

    fn poll_begin(&self) {
        self.begun.set(self.begun.get() + 1);
    }

    fn poll_end(&self) -> bool {
        self.ended.set(self.ended.get() + 1);
        self.left.get()
    }

    fn waits_for_others(&self) -> bool {
        self.remote.as_ref().is_some_and(RemoteWork::waits)
    }
}
