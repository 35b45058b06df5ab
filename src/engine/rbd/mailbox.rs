//! The way of results from threads of librbd to an IOThread.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::aio::BhHandle;
use crate::ceph::Completion;

/// The results of operations, from threads of librbd to the IOThread.
pub(super) struct Mailbox {
    pub(super) results: Mutex<Vec<(Box<Transfer>, i64)>>,
    /// Set before the first operation.
    pub(super) wake: OnceLock<BhHandle>,
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
        let mut results = mailbox.results.lock().unwrap_or_else(PoisonError::into_inner);
        results.push((self, result));
        if results.len() == 1
            && let Some(wake) = mailbox.wake.get()
        {
            wake.schedule();
        }
    }
}
