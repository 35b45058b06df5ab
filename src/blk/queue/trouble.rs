//! Requests that the disk could not execute: reported, ignored, or held until there is room.
//!
//! IOThread only, and only when something has failed: a request that succeeds at once never comes here. A held request
//! is in flight like any other, its chain is in its slot; it is only that nobody works on it until the timer fires.
//! While a ring is stopped nothing is held any more: see [`BlkQueue::release_held`] and [`Stop`].

use std::rc::{Rc, Weak};
use std::time::Duration;

use super::running::Running;
use super::{BlkQueue, State, Stop};
use crate::aio::{AioContext, Timer};
use crate::blk::trouble::{At, Verdict};
use crate::defer::DeferScope;
use crate::io::{Completer, IoOp, IoRequest, Requests};

/// The first retry comes after this time, the next ones after twice as long each, up to the other.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);

/// The requests of a queue that wait for room on the disk. IOThread only.
#[derive(Debug)]
pub(super) struct Held {
    waiting: Requests,
    /// Handed to the engine again, and not back yet.
    trying: usize,
    /// Some of those that were tried last found room.
    progress: bool,
    delay: Duration,
    timer: Timer,
    /// Gets back those that are tried again.
    retrier: Rc<Retrier>,
}

/// Takes requests back that were tried again.
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

    /// Another one waits.
    fn push(&mut self, request: Box<IoRequest>) {
        self.waiting.push(request);
        if self.trying == 0 && !self.timer.is_armed() {
            self.delay = FIRST_RETRY;
            self.timer.arm_in(self.delay);
        }
    }

    /// Those to try now.
    fn begin(&mut self) -> (Requests, Rc<dyn Completer>) {
        self.trying += self.waiting.len();
        self.progress = false;
        (std::mem::take(&mut self.waiting), Rc::clone(&self.retrier) as _)
    }

    /// One of those that were tried is back: returns whether it was the last one.
    fn end_one(&mut self, progress: bool) -> bool {
        self.trying -= 1;
        self.progress |= progress;
        self.trying == 0
    }

    /// All that were tried are back. Arranges for the next time, and returns whether all was in vain.
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
    /// Decides about a request that failed.
    #[cold]
    pub(super) fn trouble(&self, request: Box<IoRequest>) {
        let Err(error) = &request.result else {
            return self.answer(request);
        };
        let verdict = self.verdict(&request, error);
        self.device.trouble.failed(&self.at(&request), verdict, error);
        match verdict {
            Verdict::Report => self.answer(request),
            Verdict::Ignore => self.ignore(request),
            Verdict::Hold => {
                let mut state = self.state.borrow_mut();
                if state.stopping.is_some() {
                    drop(state);
                    return self.give_up(request);
                }
                self.device.trouble.held(&self.at(&request), error);
                state.stats.held.add(1);
                state.stats.held_ever.add(1);
                if let Some(slow) = &mut state.slow {
                    slow.excuse(request.token);
                }
                state.held.push(request);
            }
        }
    }

    fn verdict(&self, request: &IoRequest, error: &std::io::Error) -> Verdict {
        let params = &self.device.trouble.params;
        params.verdict(request.op, error, self.device.node.flushes_fail())
    }

    fn at(&self, request: &IoRequest) -> At<'_> {
        At {
            disk: &self.device.name,
            queue: self.index,
            op: request.op.name(),
            sector: request.first_byte().map(|byte| byte / 512),
        }
    }

    /// Tells the guest that all is well. What a read could not have is zero, as far as it is really missing.
    fn ignore(&self, mut request: Box<IoRequest>) {
        self.state.borrow().stats.ignored.add(1);
        if request.op == IoOp::Read {
            request.op = IoOp::Salvage;
            self.channel.submit(&mut vec![request], &self.completer());
            return;
        }
        request.result = Ok(());
        self.answer(request);
    }

    /// A request that cannot be held any longer, because its ring stops: whoever serves the ring next finishes it. Where
    /// nobody would get to know, the guest gets an error.
    fn give_up(&self, mut request: Box<IoRequest>) {
        let mut state = self.state.borrow_mut();
        if state.leaves_held_requests()
            && let Some(running) = &mut state.running
        {
            running.leave(request.token);
            state.count_out();
            request.iov.clear();
            state.free.push(request);
            return;
        }
        drop(state);
        if let Err(error) = &request.result {
            self.device
                .trouble
                .failed(&self.at(&request), Verdict::Report, error);
        }
        self.answer(request);
    }

    /// Tries those again that wait for room.
    fn retry_held(&self) {
        let _scope = DeferScope::enter();
        let (mut requests, completer) = self.state.borrow_mut().held.begin();
        self.channel.submit(&mut requests, &completer);
    }

    /// A request that was tried again is back.
    fn retried(&self, request: Box<IoRequest>) {
        let hold = request
            .result
            .as_ref()
            .is_err_and(|error| self.verdict(&request, error) == Verdict::Hold);
        let mut state = self.state.borrow_mut();
        let over = state.held.end_one(!hold);
        if hold && state.stopping.is_none() {
            state.held.waiting.push(request);
            drop(state);
        } else {
            state.stats.held.sub(1);
            drop(state);
            self.device.trouble.released(&self.device.name, 1);
            match hold {
                true => self.give_up(request),
                false => self.complete(request),
            }
        }
        let mut state = self.state.borrow_mut();
        if over && state.held.again() && !state.held.waiting.is_empty() {
            self.device.trouble.still_held(&self.device.name);
        }
    }

    /// The ring stops: what is held is left as it is, or gets one more try at once.
    pub(super) fn release_held(&self) {
        let mut state = self.state.borrow_mut();
        if state.held.waiting.is_empty() {
            return;
        }
        state.held.timer.cancel();
        let tracked = state.running.as_ref().is_some_and(Running::is_tracked);
        let left = state.leaves_held_requests();
        let retry = !tracked || matches!(state.stopping, Some((Stop::HandOver, _)));
        let count = state.held.waiting.len();
        if let Some(suppressed) = self.device.log.pass("stopped while held", self.index) {
            tracing::warn!(
                disk = self.device.name,
                queue = self.index,
                requests = count,
                left_to_successor = left,
                suppressed,
                "ring stops while requests are held for lack of room"
            );
        }
        if retry {
            drop(state);
            return self.retry_held();
        }
        let waiting = std::mem::take(&mut state.held.waiting);
        state.stats.held.sub(count as u64);
        drop(state);
        for request in waiting {
            self.give_up(request);
        }
        self.device.trouble.released(&self.device.name, count);
    }
}

impl State {
    /// Whether the stop that goes on leaves held requests unanswered.
    fn leaves_held_requests(&self) -> bool {
        let tracked = self.running.as_ref().is_some_and(Running::is_tracked);
        match self.stopping {
            Some((Stop::HandOver | Stop::Suspend, _)) => true,
            Some((Stop::End, _)) | None => tracked,
        }
    }
}
