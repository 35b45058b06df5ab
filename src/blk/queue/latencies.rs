//! The time from the visit that takes a request to the publication of its answer, for the statistics.
//!
//! The clock is read once per visit and once per publication. Requests that fail are not counted. IOThread only.

use std::time::{Duration, Instant};

use crate::blk::stats::QueueStats;
use crate::io::IoOp;

/// Nanoseconds since the start of the ring.
pub(super) type Nanos = u64;

/// The answers of a ring that are not published yet.
#[derive(Debug)]
pub(super) struct Latencies {
    start: Instant,
    /// Operation, and when the request was taken.
    answered: Vec<(IoOp, Nanos)>,
}

impl Latencies {
    pub(super) fn new() -> Self {
        Self {
            start: Instant::now(),
            answered: Vec::new(),
        }
    }

    #[inline]
    pub(super) fn now(&self) -> Nanos {
        #[allow(clippy::cast_possible_truncation, reason = "584 years")]
        let nanos = self.start.elapsed().as_nanos() as u64;
        nanos
    }

    /// Notes a request that has succeeded.
    #[inline]
    pub(super) fn answered(&mut self, op: IoOp, taken: Nanos) {
        self.answered.push((op, taken));
    }

    /// Counts the answers since the last publication.
    #[inline]
    pub(super) fn published(&mut self, stats: &QueueStats) {
        if self.answered.is_empty() {
            return;
        }
        let now = self.now();
        for (op, taken) in self.answered.drain(..) {
            if let Some(histogram) = stats.latency.of(op) {
                histogram.record(Duration::from_nanos(now - taken));
            }
        }
    }
}
