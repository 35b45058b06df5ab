//! Flushes that neither multiply nor forget.
//!
//! The kernel reports a failed writeback *once* for each open file (its `errseq_t` mark moves on) and may mark the lost
//! pages clean; the next `fdatasync` then succeeds although the data is gone. Two things follow:
//! - A failure is remembered, and every later flush fails with it until the file is opened anew.
//! - Of two `fdatasync` running at once only one would be told. So one runs at a time, and those who wait meanwhile
//!   share the next one: it begins after all their writes, and many queues that flush together cost one flush.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Flushes of one open file, numbered from 1 in the order in which they run.
#[derive(Debug)]
pub(super) struct Flusher {
    /// Failures are final: the page cache may have dropped what it could not write.
    sticky: bool,
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Flushes begun.
    begun: u64,
    /// Flushes ended: `begun`, or one less while one runs.
    ended: u64,
    /// The last flush that failed (`u64::MAX`: this one and all to come), with its errno.
    failed: Option<(u64, i32)>,
}

impl State {
    /// What a caller learns who needed flush `number` or a later one.
    fn outcome(&self, number: u64) -> io::Result<()> {
        match self.failed {
            Some((last, errno)) if last >= number => Err(io::Error::from_raw_os_error(errno)),
            _ => Ok(()),
        }
    }
}

impl Flusher {
    /// `sticky`: writes go through the page cache, so that a failure loses data for good. With O_DIRECT a failed flush
    /// leaves nothing behind in the kernel and may be tried again.
    pub(super) fn new(sticky: bool) -> Self {
        Self {
            sticky,
            state: Mutex::default(),
            ended: Condvar::new(),
        }
    }

    /// Returns when a flush that began after this call has ended, with its result. Runs `sync` itself if nobody does.
    pub(super) fn flush(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut state = self.lock();
        // One that runs already may have missed our writes.
        let needed = state.begun + 1;
        while state.ended < needed && state.begun > state.ended {
            state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.outcome(needed)?;
        if state.ended < needed {
            state.begun += 1;
            drop(state);
            let result = sync();
            state = self.lock();
            state.ended = state.begun;
            if let Err(e) = result {
                let last = if self.sticky { u64::MAX } else { state.ended };
                state.failed = Some((last, e.raw_os_error().unwrap_or(libc::EIO)));
            }
            self.ended.notify_all();
        }
        state.outcome(needed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The counters are consistent at every point where a holder could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
