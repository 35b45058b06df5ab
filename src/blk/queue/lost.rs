//! Rings whose memory the frontend takes away while they run.
//!
//! The access that notices goes on with zeroes (see `memory`'s guard); here the ring finds out, once per visit and once
//! per publication, and breaks.

use std::io;

use super::{BlkQueue, QueueError, State};
use crate::io::Requests;
use crate::memory::losses;

impl BlkQueue {
    /// Shows completed requests to the driver. The answers may have gone into memory that nobody shares any more.
    pub(super) fn publish(&self) {
        let mut state = self.state.borrow_mut();
        state.publish();
        if !state.broken
            && let Some(lost) = state.lost_memory()
        {
            self.fail(&mut state, &lost);
        }
    }
}

impl State {
    /// What is wrong if memory of this ring is lost, and that was not known.
    #[inline]
    pub(super) fn lost_memory(&mut self) -> Option<QueueError> {
        let losses = losses();
        if self.losses == Some(losses) {
            return None;
        }
        self.find_lost(losses)
    }

    #[cold]
    fn find_lost(&mut self, losses: usize) -> Option<QueueError> {
        self.losses = Some(losses);
        self.running.as_ref()?.lost().map(QueueError::Lost)
    }

    /// Fails requests that may have been read from lost memory: where they go is anybody's guess.
    #[cold]
    pub(super) fn abandon(&mut self, batch: &mut Requests) {
        for mut request in batch.drain(..) {
            request.result = Err(io::Error::from_raw_os_error(libc::EFAULT));
            self.complete(request);
        }
    }
}
