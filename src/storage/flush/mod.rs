//! Flushes that are shared by their callers, and failures that are never forgotten.
//!
//! The kernel reports a failed writeback *once* for each open file (its `errseq_t` mark advances), and may mark the
//! lost pages as clean. The next `fdatasync` then succeeds although the data is lost. So:
//! - A failure is remembered. Every later flush fails with it, until the file is opened again.
//! - A [`FlushWitness`] records the outcome of flushes for the next process, because the kernel will not report it
//!   again.
//! - The first flush of a block device may be the first to learn of a predecessor's lost writes. If the process is
//!   killed while it takes this report, the flushes of the next process must fail. But they must not fail after a kill
//!   during a long wait for a healthy disk. So the report is taken before, by a call that does not wait.
//! - If two `fdatasync` ran at the same time, only one would get the report. So one runs at a time. All callers that
//!   wait meanwhile share the next one, which begins after all their writes. If many queues flush together, this costs
//!   one flush.

use std::fmt::Debug;
use std::io;
use std::sync::{Arc, PoisonError};

#[cfg(tsan)]
use crate::sync::{Condvar, Mutex, MutexGuard};
#[cfg(not(tsan))]
use std::sync::{Condvar, Mutex, MutexGuard};

#[cfg(test)]
mod tests;

/// Records the outcome of flushes for the next process. Any thread.
pub trait FlushWitness: Debug + Send + Sync {
    /// The kernel's report of a predecessor's failed writes is about to be taken. Unless [`begun`](Self::begun) or
    /// [`failed`](Self::failed) follows, the outcome counts as a failure.
    fn taking_report(&self);

    /// A flush is about to begin. It may take the kernel's report of failed writes, too.
    fn begun(&self);

    /// A flush has ended, and all data written before it is stable.
    fn succeeded(&self);

    /// A flush has failed for good: written data is lost.
    fn failed(&self);
}

/// The flushes of one open file.
#[derive(Debug)]
pub(super) struct Flusher {
    state: Mutex<State>,
    ended: Condvar,
}

impl Flusher {
    /// `sticky`: writes go through the page cache, so that a failure loses data for good. With O_DIRECT the kernel
    /// holds no data, and a failed flush can be retried. `inherits`: the kernel may have a report of a predecessor's
    /// failed writes, and no other trace of them exists.
    pub(super) fn new(sticky: bool, inherits: bool) -> Self {
        Self {
            state: Mutex::new(State::new(sticky, inherits)),
            ended: Condvar::new(),
        }
    }

    /// Waits for the end of a flush that begins after this call, and returns its result. If no other caller runs that
    /// flush, this call does. Its steps must not panic:
    /// - `check` may fail, but must leave the kernel's report for others to take.
    /// - `take` takes the report and does not wait for the disk. Runs only until a flush has succeeded, and only if the
    ///   report may be a predecessor's.
    /// - `sync` waits until everything is stable.
    pub(super) fn flush(
        &self,
        check: impl Fn() -> io::Result<()>,
        take: impl Fn() -> io::Result<()>,
        sync: impl Fn() -> io::Result<()>,
    ) -> io::Result<()> {
        let mut state = self.lock();
        let needed = state.next();
        loop {
            match state.turn(needed) {
                Turn::Over(result) => return result,
                Turn::Wait => state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner),
                Turn::Run => {
                    let witnesses = match state.sticky {
                        true => state.witnesses.clone(),
                        false => Vec::new(),
                    };
                    let inherits = state.inherits;
                    drop(state);
                    let result = run(&witnesses, &check, inherits.then_some(&take), &sync);
                    state = self.lock();
                    state.end(&result);
                    self.ended.notify_all();
                }
            }
        }
    }

    /// Makes every flush fail from now on.
    pub(super) fn give_up(&self, errno: i32) {
        let mut state = self.lock();
        state.failed = Some((u64::MAX, errno));
        state.tell_witnesses();
    }

    /// Replaces a witness. The new one is told at once if flushes have failed for good.
    pub(super) fn replace_witness(
        &self,
        old: Option<&Arc<dyn FlushWitness>>,
        new: Option<Arc<dyn FlushWitness>>,
    ) {
        let mut state = self.lock();
        state
            .witnesses
            .retain(|known| old.is_none_or(|old| !Arc::ptr_eq(known, old)));
        state.witnesses.extend(new);
        state.tell_witnesses();
    }

    /// Returns whether the last flush failed.
    pub(super) fn has_failed(&self) -> bool {
        let state = self.lock();
        state.failed.is_some_and(|(last, _)| last >= state.ended)
    }

    /// Returns whether all further flushes will fail.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.lock().failed, Some((u64::MAX, _)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs the steps of a flush, and tells the witnesses of each.
fn run(
    witnesses: &[Arc<dyn FlushWitness>],
    check: impl Fn() -> io::Result<()>,
    take: Option<impl Fn() -> io::Result<()>>,
    sync: impl Fn() -> io::Result<()>,
) -> io::Result<()> {
    let tell = |event: fn(&dyn FlushWitness)| witnesses.iter().for_each(|witness| event(&**witness));
    let steps = || {
        check()?;
        if let Some(take) = take {
            tell(|witness| witness.taking_report());
            take()?;
        }
        tell(|witness| witness.begun());
        sync()
    };
    let result = steps();
    // Before the result is known to anybody: a process that is killed now has not answered the flush yet.
    match &result {
        Ok(()) => tell(|witness| witness.succeeded()),
        Err(_) => tell(|witness| witness.failed()),
    }
    result
}

/// The state of a file's flushes, which are numbered from 1.
#[derive(Debug)]
struct State {
    sticky: bool,
    /// No flush has succeeded yet: the kernel may have a report of a predecessor's failed writes.
    inherits: bool,
    /// The last flush that has begun.
    begun: u64,
    /// The last flush that has ended: `begun`, or one less while a flush runs.
    ended: u64,
    /// The last flush that failed (`u64::MAX`: this one and all to come), with its errno.
    failed: Option<(u64, i32)>,
    /// One of each disk on the file.
    witnesses: Vec<Arc<dyn FlushWitness>>,
}

/// The next step of a caller.
#[derive(Debug)]
enum Turn {
    /// Wait for the end of the flush that is running.
    Wait,
    /// Run the next flush.
    Run,
    /// Return this result.
    Over(io::Result<()>),
}

impl State {
    fn new(sticky: bool, inherits: bool) -> Self {
        Self {
            sticky,
            inherits,
            begun: 0,
            ended: 0,
            failed: None,
            witnesses: Vec::new(),
        }
    }

    /// Tells all witnesses if flushes have failed for good.
    fn tell_witnesses(&self) {
        if let Some((u64::MAX, _)) = self.failed {
            self.witnesses.iter().for_each(|witness| witness.failed());
        }
    }

    /// Returns the number of the first flush that will cover everything written by now. A running flush does not.
    fn next(&self) -> u64 {
        self.begun + 1
    }

    /// Returns the next step of a caller that needs flush `needed` or a later one.
    fn turn(&mut self, needed: u64) -> Turn {
        match self.failed {
            // Perhaps only a later flush than the needed one failed. An error too many is safe, one too few is not.
            Some((last, errno)) if last >= needed => Turn::Over(Err(io::Error::from_raw_os_error(errno))),
            _ if self.ended >= needed => Turn::Over(Ok(())),
            _ if self.begun > self.ended => Turn::Wait,
            _ => {
                self.begun += 1;
                Turn::Run
            }
        }
    }

    /// Records the end of the running flush.
    fn end(&mut self, result: &io::Result<()>) {
        self.ended = self.begun;
        match result {
            Ok(()) => self.inherits = false,
            Err(e) => {
                let last = if self.sticky { u64::MAX } else { self.ended };
                self.failed = Some((last, e.raw_os_error().unwrap_or(libc::EIO)));
                // A witness may have come while the flush was running.
                self.tell_witnesses();
            }
        }
    }
}
