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

/// What became of a batch so far.
struct Visit {
    start: Instant,
    completed: usize,
    /// The driver may be told before the end, once.
    early: bool,
}

impl BlkQueue {
    /// Executes what takes no waiting, maybe with the help of a worker, and hands the rest to the engine. There may be
    /// `more` in the ring.
    pub(super) fn execute(&self, batch: &mut Requests, more: bool) {
        // With several queues the driver has something to do meanwhile, and every notification costs both sides.
        let alone = self.engine.begin_batch();
        let mut visit = Visit {
            start: Instant::now(),
            completed: 0,
            early: alone && !more,
        };
        self.merge(batch);
        let mut done = self.done.take();
        let mut next = 0;
        self.engine.share(batch, || self.completer());
        loop {
            while next < batch.len() {
                next = self.engine.try_inline(batch, next, &mut done);
                self.complete_all(&mut done, &mut visit);
                if next < batch.len() {
                    self.tell_early(&mut visit);
                }
            }
            if !self.engine.take_back(batch, &mut done) {
                break;
            }
            self.complete_all(&mut done, &mut visit);
        }
        self.done.replace(done);
        self.submit(batch);
    }

    fn merge(&self, batch: &mut Requests) {
        let merged = self.engine.merge(batch);
        if merged > 0 {
            self.state.borrow().stats.merged.add(merged as u64);
        }
    }

    fn submit(&self, batch: &mut Requests) {
        if batch.is_empty() {
            return;
        }
        let me = self.completer();
        for request in batch.iter_mut() {
            request.set_completer(Rc::clone(&me));
        }
        self.engine.submit(batch);
    }

    fn completer(&self) -> Rc<dyn Completer> {
        self.me.upgrade().expect("called on a live queue")
    }

    /// Answers requests that were executed without an error.
    fn complete_all(&self, done: &mut Requests, visit: &mut Visit) {
        visit.completed += done.len();
        for request in done.drain(..) {
            self.state.borrow_mut().complete(request);
            self.publication.defer();
        }
    }

    fn tell_early(&self, visit: &mut Visit) {
        if visit.early && visit.completed >= WORTH_A_NOTIFICATION && visit.start.elapsed() > LONG_VISIT {
            visit.early = false;
            self.publish();
        }
    }
}
