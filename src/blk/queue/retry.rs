//! Holds requests for which there is no room on the disk, and tries them again until there is.
//!
//! A held request is in flight like any other, and the queue owns its chain. Nobody works on it until the timer fires.
//! A ring that stops holds nothing: see [`BlkQueue::release_held`] and [`Stop`]. IOThread only.

use std::rc::{Rc, Weak};
use std::time::Duration;

use super::BlkQueue;
use super::phase::Phase;
use super::ring::Stop;
use crate::aio::{AioContext, Timer};
use crate::blk::error_policy::Verdict;
use crate::defer::DeferScope;
use crate::io::{Completer, IoRequest, Requests};

/// Time before the first retry. It doubles with each retry, up to the last one.
pub(super) const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);

/// The requests of a queue that wait for room on the disk.
#[derive(Debug)]
pub(super) struct Held {
    waiting: Requests,
    /// Number of requests that the engine has got again, and not returned yet.
    trying: usize,
    /// Some of the requests that were tried last found room.
    progress: bool,
    delay: Duration,
    timer: Timer,
    retrier: Rc<Retrier>,
}

/// Gets back the requests that are tried again.
#[derive(Debug)]
struct Retrier(Weak<BlkQueue>);

impl Held {
    pub(super) fn new(ctx: &AioContext, queue: Weak<BlkQueue>) -> Self {
        let retried = queue.clone();
        let timer = ctx.timer(move |_| {
            if let Some(queue) = retried.upgrade() {
                queue.retry_held();
            }
        });
        Self {
            waiting: Vec::new(),
            trying: 0,
            progress: false,
            delay: FIRST_RETRY,
            timer,
            retrier: Rc::new(Retrier(queue)),
        }
    }

    fn push(&mut self, request: Box<IoRequest>) {
        self.waiting.push(request);
        if self.trying == 0 && !self.timer.is_armed() {
            self.delay = FIRST_RETRY;
            self.timer.arm_in(self.delay);
        }
    }

    /// Returns the number of requests that nobody works on.
    pub(super) fn waiting_len(&self) -> usize {
        self.waiting.len()
    }

    /// Tries again after `delay`, if requests wait.
    pub(super) fn wait_again(&mut self, delay: Duration) {
        if !self.waiting.is_empty() {
            self.timer.arm_in(delay);
        }
    }

    /// Returns the requests to try now.
    fn begin(&mut self) -> (Requests, Rc<dyn Completer>) {
        self.trying += self.waiting.len();
        self.progress = false;
        (std::mem::take(&mut self.waiting), Rc::clone(&self.retrier) as _)
    }

    /// A request that was tried is back. Returns whether it was the last one.
    fn end_one(&mut self, progress: bool) -> bool {
        self.trying -= 1;
        self.progress |= progress;
        self.trying == 0
    }

    /// All requests that were tried are back. Arranges the next try, and returns whether this one was in vain.
    fn again(&mut self) -> bool {
        self.delay = match self.progress {
            true => FIRST_RETRY,
            false => (self.delay * 2).min(LAST_RETRY),
        };
        if !self.waiting.is_empty() {
            self.timer.arm_in(self.delay);
        }
        !self.progress
    }
}

impl Completer for Retrier {
    fn complete(&self, request: Box<IoRequest>) {
        if let Some(queue) = self.0.upgrade() {
            queue.retried(request);
        }
    }
}

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
        let (mut requests, completer) = state.held.begin();
        drop(state);
        self.channel.borrow().submit(&mut requests, &completer);
    }

    /// A request that was tried again is back.
    fn retried(&self, request: Box<IoRequest>) {
        let hold = request
            .result
            .as_ref()
            .is_err_and(|error| self.verdict(&request, error) == Verdict::Hold);
        let mut state = self.state.borrow_mut();
        let over = state.held.end_one(!hold);
        if hold && !state.phase.is_stopping() && !state.inactive {
            state.held.waiting.push(request);
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
        if over && state.held.again() && !state.held.waiting.is_empty() {
            self.device.failures.still_held(&self.device.name);
        }
    }

    /// The ring stops: held requests get one more try at once, or are left as they are.
    pub(super) fn release_held(&self) {
        let mut state = self.state.borrow_mut();
        let count = state.held.waiting.len();
        if count == 0 {
            return;
        }
        state.held.timer.cancel();
        let tracked = state.phase.ring().is_some_and(|ring| ring.split.is_tracked());
        let handed_over = matches!(
            state.phase,
            Phase::Stopping {
                stop: Stop::HandOver,
                ..
            }
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
        let waiting = std::mem::take(&mut state.held.waiting);
        state.stats.held.sub(count as u64);
        drop(state);
        for request in waiting {
            self.give_up(request);
        }
        self.device.failures.released(&self.device.name, count);
    }
}
