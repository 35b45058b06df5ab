//! The way of results from threads of librbd to an IOThread.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::aio::BhHandle;
use crate::ceph::Completion;

/// The results of operations, from threads of librbd to the IOThread.
pub(super) struct Mailbox {
    inbox: Mutex<Inbox>,
    /// Set before the first operation.
    wake: BhHandle,
}

/// Operations that are over, each with its result.
pub(super) type Results = Vec<(Box<Transfer>, i64)>;

#[derive(Default)]
struct Inbox {
    results: Results,
    /// The IOThread looks by itself soon, so nobody wakes it.
    gathers: bool,
}

impl Mailbox {
    pub(super) fn new(wake: BhHandle) -> Self {
        Self {
            inbox: Mutex::default(),
            wake,
        }
    }

    /// Takes all results. `empty` becomes the place for the next ones.
    pub(super) fn take(&self, empty: Results) -> Results {
        std::mem::replace(&mut self.inbox().results, empty)
    }

    /// Says whether the IOThread looks by itself soon. If not, and there are results already, it is woken.
    pub(super) fn set_gathers(&self, gathers: bool) {
        let mut inbox = self.inbox();
        let before = std::mem::replace(&mut inbox.gathers, gathers);
        if before && !gathers && !inbox.results.is_empty() {
            self.wake.schedule();
        }
    }

    fn put(&self, transfer: Box<Transfer>, result: i64) {
        let mut inbox = self.inbox();
        inbox.results.push((transfer, result));
        if inbox.results.len() == 1 && !inbox.gathers {
            self.wake.schedule();
        }
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An operation of librbd.
pub(super) struct Transfer {
    pub(super) mailbox: Arc<Mailbox>,
    /// The place of the request, and its generation.
    pub(super) owner: (usize, u64),
    /// The data of a read.
    pub(super) buffer: Vec<u8>,
}

impl Completion for Transfer {
    fn buffer(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    fn complete(self: Box<Self>, result: i64) {
        let mailbox = Arc::clone(&self.mailbox);
        mailbox.put(self, result);
    }
}
