//! The limits and counters of a pool.

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
