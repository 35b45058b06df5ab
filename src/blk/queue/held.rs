//! Requests for which there is no room on the disk, and the time of their next try. IOThread only.

use std::time::Duration;

use crate::aio::Timer;
use crate::io::{IoRequest, Requests};

/// Time before the first retry. It doubles with each retry, up to the last one.
const FIRST_RETRY: Duration = Duration::from_millis(100);
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
}

impl Held {
    /// Creates an empty list. `timer` tries the requests again.
    pub(super) fn new(timer: Timer) -> Self {
        Self {
            waiting: Vec::new(),
            trying: 0,
            progress: false,
            delay: FIRST_RETRY,
            timer,
        }
    }

    /// Holds a request that failed for the first time.
    pub(super) fn push(&mut self, request: Box<IoRequest>) {
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

    /// Holds a request that was tried again in vain.
    pub(super) fn put_back(&mut self, request: Box<IoRequest>) {
        self.waiting.push(request);
    }

    /// Tries again soon, if requests wait.
    pub(super) fn try_soon(&mut self) {
        if !self.waiting.is_empty() {
            self.timer.arm_in(FIRST_RETRY);
        }
    }

    /// Cancels the next try.
    pub(super) fn cancel(&mut self) {
        self.timer.cancel();
    }

    /// Gives up the requests that wait.
    pub(super) fn take(&mut self) -> Requests {
        std::mem::take(&mut self.waiting)
    }

    /// Returns the requests to try now.
    pub(super) fn begin(&mut self) -> Requests {
        self.trying += self.waiting.len();
        self.progress = false;
        self.take()
    }

    /// A request that was tried is back. Returns whether it was the last one.
    pub(super) fn end_one(&mut self, progress: bool) -> bool {
        self.trying -= 1;
        self.progress |= progress;
        self.trying == 0
    }

    /// All requests that were tried are back. Arranges the next try, and returns whether this one was in vain.
    pub(super) fn again(&mut self) -> bool {
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
