//! The way of results from threads of librbd to an IOThread.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::aio::BhHandle;
use crate::ceph::{Call, Completion};

/// The results of operations, from threads of librbd to the IOThread.
pub(super) struct Mailbox {
    inbox: Mutex<Inbox>,
    /// Set before the first operation.
    wake: BhHandle,
}

/// Operations that are over, each with its result.
pub(super) type Results = Vec<(Box<Call<Transfer>>, i64)>;

#[derive(Default)]
struct Inbox {
    results: Results,
    /// The IOThread looks by itself soon, so nobody wakes it.
    gathers: bool,
    /// Nobody looks any more.
    is_closed: bool,
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

    /// Drops all results, now and from now on. They own the mailbox, and their image stays open as long as they exist.
    pub(super) fn close(&self) {
        let mut inbox = self.inbox();
        inbox.is_closed = true;
        let results = std::mem::take(&mut inbox.results);
        drop(inbox);
        drop(results);
    }

    fn put(&self, call: Box<Call<Transfer>>, result: i64) {
        let mut inbox = self.inbox();
        if inbox.is_closed {
            drop(inbox);
            return;
        }
        inbox.results.push((call, result));
        let wakes = inbox.results.len() == 1 && !inbox.gathers;
        // The IOThread that wakes up needs the lock.
        drop(inbox);
        if wakes {
            self.wake.schedule();
        }
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The owner of an operation of librbd.
pub(super) struct Transfer {
    mailbox: Arc<Mailbox>,
    /// The place of the request, and its generation.
    pub(super) owner: (usize, u64),
    /// Begins with the data of a read. It may be longer, and have data of earlier reads.
    buffer: Vec<u8>,
    len: usize,
}

impl Transfer {
    /// Makes one for an operation of the request `owner`, with a buffer of `len` bytes.
    pub(super) fn new(mailbox: &Arc<Mailbox>, owner: (usize, u64), len: usize) -> Self {
        Self {
            mailbox: Arc::clone(mailbox),
            owner,
            buffer: vec![0; len],
            len,
        }
    }

    /// Prepares it for another operation.
    pub(super) fn reuse(&mut self, owner: (usize, u64), len: usize) {
        (self.owner, self.len) = (owner, len);
        if self.buffer.len() < len {
            self.buffer.resize(len, 0);
        }
    }

    /// Returns the data of a read.
    pub(super) fn data(&self) -> &[u8] {
        &self.buffer[..self.len]
    }

    /// Returns the number of bytes that the buffer has in memory.
    pub(super) fn capacity(&self) -> usize {
        self.buffer.capacity()
    }
}

impl Completion for Transfer {
    fn buffer(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.len]
    }

    fn complete(call: Box<Call<Self>>, result: i64) {
        let mailbox = Arc::clone(&call.completion.mailbox);
        mailbox.put(call, result);
    }
}
