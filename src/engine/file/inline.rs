//! Requests that the IOThread executes itself, because they need not wait.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::job::TryExecute;
use crate::io::{IoOp, IoRequest, Requests};
use crate::storage::Nowait;

/// Maximum length in bytes of a request that the IOThread executes. Longer copies are better done by another CPU.
const LONGEST: usize = 128 << 10;

/// Number of requests that are executed between two clock readings.
const SLICE: u32 = 16;

/// Minimum number of requests in a slice whose time is measured.
const MEASURED: usize = 4;

/// Decides which requests of a queue are tried in its IOThread. IOThread only.
#[derive(Debug)]
pub(super) struct Inline<E> {
    disk: Arc<E>,
    nowait: Nowait,
    reads: Misses,
    writes: Misses,
    /// Average time of a request in the last slice that was measured.
    cost: Cell<Duration>,
}

impl<E: TryExecute> Inline<E> {
    pub(super) fn new(disk: Arc<E>) -> Self {
        Self {
            nowait: disk.nowait(),
            disk,
            reads: Misses::default(),
            writes: Misses::default(),
            cost: Cell::default(),
        }
    }

    /// Returns whether the disk is in memory, perhaps mapped.
    pub(super) fn is_in_memory(&self) -> bool {
        self.nowait == Nowait::Memory
    }

    /// Returns the recent average time of a request in a long batch.
    pub(super) fn cost(&self) -> Duration {
        self.cost.get()
    }

    /// Tries the next [`SLICE`] requests from index `from` on, and moves those that did not have to wait to `done`. The
    /// others stay, in order. Returns the index of the first request that was not tried yet. `lone`: see
    /// [`TryExecute::session`].
    pub(super) fn execute(
        &self,
        batch: &mut Requests,
        from: usize,
        done: &mut Requests,
        lone: bool,
    ) -> usize {
        if self.nowait == Nowait::No {
            return batch.len();
        }
        let (before, slice) = (batch.len(), (SLICE as usize).min(batch.len() - from));
        let Some(session) = self.disk.session(lone) else {
            return from + slice;
        };
        let start = (slice >= MEASURED).then(Instant::now);
        for request in batch.extract_if(from..from + slice, |request| self.try_one(&session, request)) {
            request.disband(|request| done.push(request));
        }
        if let Some(start) = start {
            self.cost
                .set(start.elapsed() / u32::try_from(slice).unwrap_or(SLICE));
        }
        from + slice - (before - batch.len())
    }

    fn try_one(&self, session: &E::Session<'_>, request: &mut IoRequest) -> bool {
        let misses = match request.op {
            IoOp::Read => &self.reads,
            IoOp::Write { durable: false } => &self.writes,
            _ => return false,
        };
        if request.whole().len() > LONGEST || !misses.is_worth_trying() {
            return false;
        }
        let done = E::try_execute(session, request);
        misses.tell(done);
        done
    }
}

/// Avoids useless attempts while data is not in the page cache.
///
/// After a run of misses, attempts pause for a number of requests that grows with the run, up to `PAUSE`.
#[derive(Debug, Default)]
pub(in crate::engine) struct Misses {
    run: Cell<u32>,
    pause: Cell<u32>,
}

/// Misses tolerated before attempts pause.
const CHANCE: u32 = 4;
const PAUSE: u32 = 64;

impl Misses {
    pub(in crate::engine) fn is_worth_trying(&self) -> bool {
        let pause = self.pause.get();
        self.pause.set(pause.saturating_sub(1));
        pause == 0
    }

    pub(in crate::engine) fn tell(&self, hit: bool) {
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

    /// Returns how many of 1000 requests are tried if all of them miss (or hit).
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
    fn cold_data_is_rarely_tried_and_warm_data_always() {
        let misses = Misses::default();
        assert_eq!(tried(&misses, true), 1000);
        let cold = tried(&misses, false);
        assert!((10..50).contains(&cold), "{cold}");
        // Warm data is noticed within one pause.
        assert!(tried(&misses, true) >= 1000 - PAUSE as usize);
        assert_eq!(tried(&misses, true), 1000);
    }

    #[test]
    fn occasional_misses_cause_no_pause() {
        let misses = Misses::default();
        for _ in 0..100 {
            for hit in [false, false, true] {
                assert!(misses.is_worth_trying());
                misses.tell(hit);
            }
        }
    }
}
