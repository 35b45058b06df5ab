//! Requests that take too long are reported (`--io-timeout`). Nothing is done about them: only the disk can.
//!
//! The time is taken once per batch. A timer looks at those in flight when the oldest could be too old.

use std::rc::Weak;
use std::time::{Duration, Instant};

use super::{BlkQueue, State};
use crate::aio::{AioContext, Timer};
use crate::blk::state::DeviceState;
use crate::blk::trouble::At;
use crate::io::IoRequest;

/// When each request in flight has begun. IOThread only.
#[derive(Debug)]
pub(super) struct Slow {
    limit: Duration,
    timer: Timer,
    /// By descriptor head; what is not in flight any more is left as it was.
    begun: Vec<Option<Begun>>,
}

#[derive(Clone, Copy, Debug)]
struct Begun {
    at: Instant,
    op: &'static str,
    sector: Option<u64>,
}

impl Slow {
    pub(super) fn new(ctx: &AioContext, queue: Weak<BlkQueue>, limit: Duration) -> Self {
        let timer = ctx.timer(move |_| {
            if let Some(queue) = queue.upgrade() {
                queue.state.borrow_mut().report_slow(queue.index, &queue.device);
            }
        });
        Self {
            limit,
            timer,
            begun: Vec::new(),
        }
    }

    /// These go to the engine now.
    pub(super) fn begin(&mut self, batch: &[Box<IoRequest>]) {
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
                sector: request.first_byte().map(|byte| byte / 512),
            });
        }
        if !self.timer.is_armed() {
            self.timer.arm(at + self.limit);
        }
    }

    /// This one is not too slow, whatever it takes.
    pub(super) fn excuse(&mut self, head: u16) {
        if let Some(begun) = self.begun.get_mut(usize::from(head)) {
            *begun = None;
        }
    }
}

impl State {
    /// Reports each request in flight that has become too old, once.
    fn report_slow(&mut self, index: u16, device: &DeviceState) {
        let (Some(slow), Some(running)) = (&mut self.slow, &self.running) else {
            return;
        };
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        for (head, entry) in (0u16..).zip(&mut slow.begun) {
            let Some(begun) = *entry else { continue };
            if !running.has(head) {
                *entry = None;
                continue;
            }
            let age = now.saturating_duration_since(begun.at);
            if age < slow.limit {
                let due = begun.at + slow.limit;
                next = Some(next.map_or(due, |next| next.min(due)));
                continue;
            }
            *entry = None;
            self.stats.late.add(1);
            let at = At {
                disk: &device.name,
                queue: index,
                op: begun.op,
                sector: begun.sector,
            };
            device.trouble.late(&at, age);
        }
        if let Some(next) = next {
            slow.timer.arm(next);
        }
    }
}
