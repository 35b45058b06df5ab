//! The time from the visit that takes a request to the publication of its answer, for the statistics.
//!
//! The clock is read once per publication. A visit begins at the time that the loop has read last, which is when it
//! noticed the requests, or when another queue published its answers. Requests that fail are not counted. IOThread only.

use crate::aio::clock::LoopClock;
pub(super) use crate::aio::clock::Nanos;
use crate::blk::latency::Operation;
use crate::blk::stats::QueueStats;

/// The answers of a ring that are not published yet. Those of one visit are usually one entry.
#[derive(Debug, Default)]
pub(super) struct Latencies(Vec<Answers>);

/// Answers in a row to requests of one kind that were taken together.
#[derive(Debug)]
struct Answers {
    operation: Operation,
    taken: Nanos,
    count: u64,
}

impl Latencies {
    /// Notes a request that has succeeded, and was taken at this time.
    #[inline]
    pub(super) fn answered(&mut self, operation: Option<Operation>, taken: Nanos) {
        let Some(operation) = operation else { return };
        match self.0.last_mut() {
            Some(last) if (last.operation, last.taken) == (operation, taken) => last.count += 1,
            _ => self.0.push(Answers {
                operation,
                taken,
                count: 1,
            }),
        }
    }

    /// Counts the answers since the last publication.
    #[inline]
    pub(super) fn published(&mut self, stats: &QueueStats, clock: &LoopClock) {
        if self.0.is_empty() {
            return;
        }
        let now = clock.read();
        for answers in self.0.drain(..) {
            let nanos = now.saturating_sub(answers.taken);
            stats.latency.record(answers.operation, nanos, answers.count);
        }
    }
}
