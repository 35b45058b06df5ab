//! Keeps requests away from the disk while the node below is changed. IOThread only.
//!
//! A quiesced queue takes no chains and tries no held request again. Requests that its channel has are waited for, as
//! long as the disk takes.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use super::{BlkQueue, State};
use crate::engine::{Channel, DiskView};

impl BlkQueue {
    /// Takes no more chains until [`resume`](Self::resume). `done` gets a message when the channel has no request any
    /// more. Requests that wait for their throttle group are started at once.
    pub(in crate::blk) fn quiesce(&self, done: Sender<()>) {
        let mut state = self.state.borrow_mut();
        state.quiesced = true;
        state.quiescing = Some(done);
        drop(state);
        self.channel.borrow().release_waiting();
        self.state.borrow_mut().finish_quiesce();
    }

    /// Goes on after [`quiesce`](Self::quiesce).
    pub(in crate::blk) fn resume(&self) {
        let mut state = self.state.borrow_mut();
        (state.quiesced, state.quiescing) = (false, None);
        state.held.try_soon();
        drop(state);
        self.process();
    }

    /// Uses a sibling of `channel` and another view from now on. The queue is quiesced.
    pub(in crate::blk) fn replace_channel(&self, channel: &Channel, view: Arc<DiskView>) {
        let mut state = self.state.borrow_mut();
        state.view = view;
        let old = self
            .channel
            .replace(channel.counting_sibling(&state.stats.throttle));
        if let Some(ring) = state.phase.ring_mut() {
            ring.pin(&self.channel.borrow());
        }
        drop(state);
        drop(old);
    }

    /// Refuses everything but reads from now on, or no longer does. Held requests are tried once more, and then they
    /// fail.
    pub(in crate::blk) fn set_inactive(&self, inactive: bool) {
        self.state.borrow_mut().inactive = inactive;
        if inactive {
            self.retry_held();
        }
    }
}

impl State {
    /// Tells a caller of [`BlkQueue::quiesce`] once the channel has no request.
    pub(super) fn finish_quiesce(&mut self) {
        if self.has_left_channel()
            && let Some(done) = self.quiescing.take()
        {
            // The caller may be gone.
            let _ = done.send(());
        }
    }

    /// Ends a stop or [`BlkQueue::quiesce`] soon, if it waited for the request that has just come back.
    ///
    /// A bottom half does that, because the caller may be in the middle of something.
    #[cold]
    pub(super) fn check_drained(&self) {
        let is_empty = self.phase.ring().is_none_or(|ring| ring.owned.is_empty());
        if is_empty || self.has_left_channel() {
            self.drained.schedule();
        }
    }

    /// Returns whether the channel has no request of this queue.
    fn has_left_channel(&self) -> bool {
        let owned = self.phase.ring().map_or(0, |ring| ring.owned.len());
        owned == self.held.waiting_len()
    }
}
