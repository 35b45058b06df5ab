//! The figures of an IOThread.

use std::fmt;
use std::sync::Arc;

use crate::aio::LoopFigures;
use crate::sys;
use crate::thread_pool::{PoolFigures, PoolTotals};

/// The figures of an IOThread. Any thread may read them, and reading costs the IOThread nothing.
#[derive(Debug)]
pub struct IoThreadFigures {
    pub(super) thread_id: i32,
    pub(super) waits: Arc<LoopFigures>,
    pub(super) pools: Arc<PoolFigures>,
}

impl IoThreadFigures {
    /// Returns the waits of the event loop.
    pub fn waits(&self) -> &LoopFigures {
        &self.waits
    }

    /// Returns the counters of the IOThread's pools, added up.
    pub fn pools(&self) -> PoolTotals {
        self.pools.totals()
    }

    /// Returns the CPU time of the thread in nanoseconds, without its workers, or `None` if the thread has ended.
    pub fn cpu_nanos(&self) -> Option<u64> {
        sys::clock::thread_nanos(self.thread_id).ok()
    }
}

/// Formats the figures for people, in one line.
impl fmt::Display for IoThreadFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (waits, pools) = (&self.waits, self.pools());
        let millis = self.cpu_nanos().unwrap_or_default() / 1_000_000;
        write!(
            f,
            "cpu_ms={millis} polls={} poll_hits={} sleeps={} pool_threads={} idle={} queued={} active={} spawn_failures={}",
            waits.polls.get(),
            waits.poll_hits.get(),
            waits.sleeps.get(),
            pools.threads,
            pools.idle,
            pools.queued,
            pools.active,
            pools.spawn_failures,
        )
    }
}
