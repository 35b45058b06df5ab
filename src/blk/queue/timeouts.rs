//! Reports requests that take too long (`--io-timeout`). Nothing else is done about them, because only the disk can.
//!
//! The clock is read once per batch. A timer checks the requests in flight when the oldest could be too old. IOThread
//! only.

use std::time::{Duration, Instant};

use super::ownership::Owned;
use crate::aio::Timer;
use crate::blk::failures::Place;
use crate::blk::state::DeviceState;
use crate::blk::stats::QueueStats;
use crate::io::IoRequest;

/// The start of each request in flight.
#[derive(Debug)]
pub(super) struct Timeouts {
    limit: Duration,
    timer: Timer,
    /// By descriptor head. The entry of a request that is not in flight any more stays.
    begun: Vec<Option<Begun>>,
}

#[derive(Clone, Copy, Debug)]
struct Begun {
    at: Instant,
    op: &'static str,
    sector: Option<u64>,
}

impl Timeouts {
    /// Creates an empty list. `timer` calls [`report`](Self::report).
    pub(super) fn new(limit: Duration, timer: Timer) -> Self {
        Self {
            limit,
            timer,
            begun: Vec::new(),
        }
    }

    /// These requests go to the engine now. The disk begins at byte `start` of the node below.
    pub(super) fn begin(&mut self, batch: &[Box<IoRequest>], start: u64) {
        if batch.is_empty() {
            return;
        }
        let at = Instant::now();
        for request in batch {
            let head = usize::from(request.token);
            if self.begun.len() <= head {
                self.begun.resize(head + 1, None);
            }
            self.begun[head] = Some(Begun {
                at,
                op: request.op.name(),
                sector: request.first_byte().map(|byte| byte.saturating_sub(start) / 512),
            });
        }
        if !self.timer.is_armed() {
            self.timer.arm(at + self.limit);
        }
    }

    /// Exempts a request.
    pub(super) fn excuse(&mut self, head: u16) {
        if let Some(begun) = self.begun.get_mut(usize::from(head)) {
            *begun = None;
        }
    }

    /// Reports each request in flight that has become too old, once.
    pub(super) fn report(&mut self, owned: &Owned, queue: u16, device: &DeviceState, stats: &QueueStats) {
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        for (head, entry) in (0u16..).zip(&mut self.begun) {
            let Some(begun) = *entry else { continue };
            if !owned.has(head) {
                *entry = None;
                continue;
            }
            let age = now.saturating_duration_since(begun.at);
            if age < self.limit {
                let due = begun.at + self.limit;
                next = Some(next.map_or(due, |next| next.min(due)));
                continue;
            }
            *entry = None;
            stats.late.add(1);
            let place = Place {
                disk: &device.name,
                queue,
                op: begun.op,
                sector: begun.sector,
            };
            device.failures.late(&place, age);
        }
        if let Some(next) = next {
            self.timer.arm(next);
        }
    }
}
