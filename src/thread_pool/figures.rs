//! The limits and counters of a pool.

use std::iter;
use std::sync::{Arc, OnceLock};

use crate::counter::Counter;

/// Limits on the number of workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadPoolParams {
    /// The number of workers kept even when idle; at most `max_threads`.
    pub min_threads: usize,
    /// The highest number of workers; at least 1.
    ///
    /// While a pool has several [shares](super::ThreadPool::with_share), a share occupies at most twice as many workers
    /// as it leaves free, or one. If it finds none at all, the pool makes one more worker for it. So there is at most
    /// one worker more for each share after the first.
    pub max_threads: usize,
}

impl Default for ThreadPoolParams {
    fn default() -> Self {
        Self {
            min_threads: 0,
            max_threads: 64,
        }
    }
}

/// A snapshot of the pool's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// All workers, including those not created yet.
    pub cur_threads: usize,
    /// Workers that sleep and have not been woken.
    pub idle_threads: usize,
    /// Workers requested but not created yet.
    pub new_threads: usize,
    /// Workers created but not running yet.
    pub pending_threads: usize,
    /// The lower limit.
    pub min_threads: usize,
    /// The upper limit.
    pub max_threads: usize,
    /// Jobs that no worker has taken.
    pub queued: usize,
    /// Jobs that were taken but have not finished.
    pub active: usize,
    /// Wakeups of workers since the pool was made.
    pub wakeups: u64,
    /// Failed attempts to create a thread since the pool was made.
    pub spawn_failures: u64,
}

/// Some counters of a pool, which any thread can read without its lock.
#[derive(Debug, Default)]
pub struct PoolFigures {
    // Written under the pool's lock.
    pub(super) threads: Counter,
    pub(super) idle: Counter,
    pub(super) queued: Counter,
    pub(super) active: Counter,
    pub(super) spawn_failures: Counter,
    /// The figures of another pool of the same family.
    next: OnceLock<Arc<PoolFigures>>,
}

/// The counters of a pool and of its siblings, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolTotals {
    /// All workers, including those not created yet.
    pub threads: u64,
    /// Workers that sleep.
    pub idle: u64,
    /// Jobs that no worker has taken.
    pub queued: u64,
    /// Jobs that were taken but have not finished.
    pub active: u64,
    /// Failed attempts to create a thread.
    pub spawn_failures: u64,
}

impl PoolFigures {
    /// Adds up the counters of this pool and of its siblings.
    pub fn totals(&self) -> PoolTotals {
        let pools = iter::successors(Some(self), |pool| pool.next.get().map(|next| &**next));
        pools.fold(PoolTotals::default(), |sum, pool| PoolTotals {
            threads: sum.threads + pool.threads.get(),
            idle: sum.idle + pool.idle.get(),
            queued: sum.queued + pool.queued.get(),
            active: sum.active + pool.active.get(),
            spawn_failures: sum.spawn_failures + pool.spawn_failures.get(),
        })
    }

    /// Adds the figures of a sibling, for good.
    pub(super) fn append(&self, sibling: Arc<Self>) {
        let mut last = self;
        let mut new = sibling;
        // Only the thread of the context appends.
        while let Err(rejected) = last.next.set(new) {
            new = rejected;
            match last.next.get() {
                Some(next) => last = next,
                None => return,
            }
        }
    }
}
