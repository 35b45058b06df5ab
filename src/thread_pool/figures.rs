//! A pool's limits and figures.

/// Limits of the number of workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadPoolParams {
    /// Workers that are kept even if idle; at most `max_threads`.
    pub min_threads: usize,
    /// At least 1.
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

/// The pool's figures at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Workers, including those still to be created.
    pub cur_threads: usize,
    /// Workers that sleep and were not woken.
    pub idle_threads: usize,
    /// Workers asked for and not created yet.
    pub new_threads: usize,
    /// Workers created and not running yet.
    pub pending_threads: usize,
    /// The lower limit.
    pub min_threads: usize,
    /// The upper limit.
    pub max_threads: usize,
    /// Works that no worker has taken.
    pub queued: usize,
    /// Works that were taken and are not finished.
    pub active: usize,
    /// Wakeups of workers since the start.
    pub wakeups: u64,
    /// Threads that could not be created, since the start.
    pub spawn_failures: u64,
}
