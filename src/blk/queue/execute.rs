//! From the batch to the engine, and what the IOThread does by itself on the way.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::BlkQueue;
use crate::io::{Completer, Requests};

/// A driver that waits for this queue alone is told of the first completions of a visit that takes longer than this: it
/// then works at the same time as we do.
const LONG_VISIT: Duration = Duration::from_micros(20);

/// But not of fewer than so many.
const WORTH_A_NOTIFICATION: usize = 32;

/// What became of the batch of a visit so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Visit {
    start: Instant,
    completed: usize,
    /// The driver may be told before the end, once.
    early: bool,
}

impl Visit {
    pub(super) fn begin(early: bool) -> Self {
        Self {
            start: Instant::now(),
            completed: 0,
            early,
        }
    }
}

impl BlkQueue {
    /// Hands the batch to the engine. There may be `more` in the ring.
    pub(super) fn execute(&self, batch: &mut Requests, more: bool) {
        self.visit.set(Visit::begin(!more));
        let merged = self.channel.submit(batch, &self.completer());
        if merged > 0 {
            self.state.borrow().stats.merged.add(merged as u64);
        }
    }

    pub(super) fn completer(&self) -> Rc<dyn Completer> {
        self.me.upgrade().expect("called on a live queue")
    }

    /// Answers requests that were executed without an error while their batch was submitted; `more` of it follow.
    pub(super) fn complete_now(&self, done: &mut Requests, more: bool) {
        let mut visit = self.visit.get();
        visit.completed += done.len();
        for request in done.drain(..) {
            self.state.borrow_mut().complete(request);
            self.publication.defer();
        }
        // With several queues the driver has something to do meanwhile, and every notification costs both sides.
        if more
            && visit.early
            && visit.completed >= WORTH_A_NOTIFICATION
            && visit.start.elapsed() > LONG_VISIT
        {
            visit.early = false;
            self.publish();
        }
        self.visit.set(visit);
    }
}
