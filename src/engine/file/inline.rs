//! Requests that the IOThread does by itself, because they take no waiting.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::execute::try_execute;
use crate::io::{IoOp, IoRequest, Requests};
use crate::storage::{Nowait, RawFile};

/// Longest request done in the IOThread, in bytes: copying more takes so long that another CPU had better do it.
const LONGEST: usize = 128 << 10;

/// Requests executed without a look at the clock.
const SLICE: u32 = 16;

/// Shorter slices say little about what a request takes.
const MEASURED: usize = 4;

/// The decision which requests of one queue are tried in its IOThread. IOThread only.
#[derive(Debug)]
pub(super) struct Inline {
    file: Arc<RawFile>,
    nowait: Nowait,
    reads: Misses,
    writes: Misses,
    /// What each request of the last full slice took.
    cost: Cell<Duration>,
}

impl Inline {
    pub(super) fn new(file: Arc<RawFile>) -> Self {
        Self {
            nowait: file.nowait(),
            file,
            reads: Misses::default(),
            writes: Misses::default(),
            cost: Cell::default(),
        }
    }

    /// What a request has taken lately, in a long batch.
    pub(super) fn cost(&self) -> Duration {
        self.cost.get()
    }

    /// Executes those of the next [`SLICE`] requests from `from` on that take no waiting, and moves them to `done`.
    /// The others stay, in order; returns where the rest begins.
    pub(super) fn execute(&self, batch: &mut Requests, from: usize, done: &mut Requests) -> usize {
        if self.nowait == Nowait::No {
            return batch.len();
        }
        let (before, slice) = (batch.len(), (SLICE as usize).min(batch.len() - from));
        let start = (slice >= MEASURED).then(Instant::now);
        for request in batch.extract_if(from..from + slice, |request| self.try_one(request)) {
            request.disband(|request| done.push(request));
        }
        if let Some(start) = start {
            self.cost
                .set(start.elapsed() / u32::try_from(slice).unwrap_or(SLICE));
        }
        from + slice - (before - batch.len())
    }

    fn try_one(&self, request: &mut IoRequest) -> bool {
        let misses = match request.op {
            IoOp::Write { .. } => &self.writes,
            _ => &self.reads,
        };
        if request.whole().len() > LONGEST || !misses.is_worth_trying() {
            return false;
        }
        let done = try_execute(&self.file, request);
        misses.tell(done);
        done
    }
}

/// Keeps cold data from costing a futile system call for each request.
///
/// After a run of misses, as many requests as it was long are not tried, up to `PAUSE`; then one is.
#[derive(Debug, Default)]
pub(super) struct Misses {
    run: Cell<u32>,
    pause: Cell<u32>,
}

/// So many misses in a row are taken for chance.
const CHANCE: u32 = 4;
const PAUSE: u32 = 64;

impl Misses {
    pub(super) fn is_worth_trying(&self) -> bool {
        let pause = self.pause.get();
        self.pause.set(pause.saturating_sub(1));
        pause == 0
    }

    pub(super) fn tell(&self, hit: bool) {
        if hit {
            self.run.set(0);
            return;
        }
        let run = self.run.get() + 1;
        if run > CHANCE {
            self.pause.set((run - CHANCE).saturating_mul(2).min(PAUSE));
        }
        self.run.set(run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of 1000 requests that all miss (or hit), so many are tried.
    fn tried(misses: &Misses, hit: bool) -> usize {
        let one = |_: &usize| {
            let tried = misses.is_worth_trying();
            if tried {
                misses.tell(hit);
            }
            tried
        };
        (0..1000).filter(one).count()
    }

    #[test]
    fn cold_data_is_hardly_tried_and_warm_data_always() {
        let misses = Misses::default();
        assert_eq!(tried(&misses, true), 1000);
        let cold = tried(&misses, false);
        assert!((10..50).contains(&cold), "{cold}");
        // What has become warm is noticed within a pause.
        assert!(tried(&misses, true) >= 1000 - PAUSE as usize);
        assert_eq!(tried(&misses, true), 1000);
    }

    #[test]
    fn a_miss_now_and_then_changes_nothing() {
        let misses = Misses::default();
        for _ in 0..100 {
            for hit in [false, false, true] {
                assert!(misses.is_worth_trying());
                misses.tell(hit);
            }
        }
    }
}
