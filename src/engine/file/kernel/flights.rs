//! Requests in the kernel, and the files that they belong to.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};

use super::Inner;
use super::queue::{KernelQueue, Target};
use crate::engine::file::threads::ThreadsEngine;
use crate::io::IoRequest;

/// A request in the kernel, and its file.
pub(super) struct Pending<Q: KernelQueue> {
    pub(super) request: Box<IoRequest>,
    pub(super) file: Rc<Registered<Q>>,
}

/// A file of the queue. It is removed with its last request.
pub(super) struct Registered<Q: KernelQueue> {
    pub(super) target: Target,
    /// Executes requests that the queue does not support.
    pub(super) threads: Rc<ThreadsEngine>,
    /// Requests that wait for room in the kernel.
    pub(super) backlog: RefCell<VecDeque<Box<IoRequest>>>,
    /// Number of requests in the kernel.
    pub(super) flying: Cell<usize>,
    pub(super) inner: Weak<Inner<Q>>,
}

impl<Q: KernelQueue> Drop for Registered<Q> {
    fn drop(&mut self) {
        // A queue that was dropped has no files.
        if let Some(inner) = self.inner.upgrade() {
            inner.queue.borrow_mut().remove_file(self.target.number);
        }
    }
}

/// Requests that were prepared and not reaped yet, indexed by the number that comes back with each completion.
pub(super) struct Flights<Q: KernelQueue> {
    slots: Vec<Option<Pending<Q>>>,
    free: Vec<usize>,
    pub(super) count: usize,
}

impl<Q: KernelQueue> Default for Flights<Q> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            count: 0,
        }
    }
}

impl<Q: KernelQueue> Flights<Q> {
    /// Keeps a request in place until [`end`](Self::end) is called with the returned number.
    pub(super) fn begin(&mut self, pending: Pending<Q>) -> usize {
        self.count += 1;
        match self.free.pop() {
            Some(number) => {
                self.slots[number] = Some(pending);
                number
            }
            None => {
                self.slots.push(Some(pending));
                self.slots.len() - 1
            }
        }
    }

    pub(super) fn end(&mut self, number: usize) -> Pending<Q> {
        self.count -= 1;
        self.free.push(number);
        self.slots[number].take().expect("each request completes once")
    }

    pub(super) fn get(&self, number: usize) -> &Pending<Q> {
        self.slots[number].as_ref().expect("the request has just begun")
    }
}
