//! Holds requests for which there is no room on the disk, and tries them again until there is.
//!
//! A held request is in flight like any other, and the queue owns its chain. Nobody works on it until the timer fires.
//! A ring that stops holds nothing: see [`BlkQueue::release_held`] and [`Stop`]. IOThread only.

use super::BlkQueue;
use super::phase::Stage;
use super::ring::Stop;
use crate::blk::error_policy::Verdict;
use crate::defer::DeferScope;
use crate::io::{Completer, IoRequest};

impl BlkQueue {
    /// Holds a request until there is room, or gives it up if the ring stops.
    pub(super) fn hold(&self, request: Box<IoRequest>) {
        let mut state = self.state.borrow_mut();
        let Err(error) = &request.result else { return };
        if state.phase.is_stopping() {
            drop(state);
            return self.give_up(request);
        }
        if state.inactive {
            drop(state);
            return self.report(request);
        }
        self.device.failures.held(&self.place(&request), error);
        state.stats.held.add(1);
        state.stats.held_ever.add(1);
        if let Some(timeouts) = &mut state.timeouts {
            timeouts.excuse(request.token);
        }
        state.held.push(request);
        state.check_drained();
    }

    /// Tries the held requests again, unless the disk must be left alone now.
    pub(super) fn retry_held(&self) {
        let mut state = self.state.borrow_mut();
        if state.quiesced {
            return;
        }
        let _scope = DeferScope::enter();
        let mut requests = state.held.begin();
        drop(state);
        self.channel.borrow().submit(&mut requests, &self.retrier);
    }

    /// A request that was tried again is back.
    pub(super) fn retried(&self, request: Box<IoRequest>) {
        let hold = request
            .result
            .as_ref()
            .is_err_and(|error| self.verdict(&request, error) == Verdict::Hold);
        let mut state = self.state.borrow_mut();
        let over = state.held.end_one(!hold);
        if hold && !state.phase.is_stopping() && !state.inactive {
            state.held.put_back(request);
            state.check_drained();
            drop(state);
        } else {
            state.stats.held.sub(1);
            drop(state);
            self.device.failures.released(&self.device.name, 1);
            match hold {
                true if self.state.borrow().phase.is_stopping() => self.give_up(request),
                true => self.report(request),
                false => self.complete(request),
            }
        }
        let mut state = self.state.borrow_mut();
        if over && state.held.again() && state.held.waiting_len() > 0 {
            self.device.failures.still_held(&self.device.name);
        }
    }

    /// The ring stops: held requests get one more try at once, or are left as they are.
    pub(super) fn release_held(&self) {
        let mut state = self.state.borrow_mut();
        let count = state.held.waiting_len();
        if count == 0 {
            return;
        }
        state.held.cancel();
        let tracked = state.phase.ring().is_some_and(|ring| ring.split.is_tracked());
        let handed_over = matches!(
            state.phase.stage(),
            Some(Stage::Stopping {
                stop: Stop::HandOver,
                ..
            })
        );
        if let Some(suppressed) = self.device.log.pass("stopped while held", self.index) {
            tracing::warn!(
                disk = self.device.name,
                queue = self.index,
                requests = count,
                left_to_successor = state.leaves_held_requests(),
                suppressed,
                "ring stops while requests are held for lack of room"
            );
        }
        if !tracked || handed_over {
            drop(state);
            return self.retry_held();
        }
        let waiting = state.held.take();
        state.stats.held.sub(count as u64);
        drop(state);
        for request in waiting {
            self.give_up(request);
        }
        self.device.failures.released(&self.device.name, count);
    }
}
