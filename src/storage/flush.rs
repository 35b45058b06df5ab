//! Flushes that neither multiply nor forget.
//!
//! The kernel reports a failed writeback *once* for each open file (its `errseq_t` mark moves on) and may mark the lost
//! pages clean; the next `fdatasync` then succeeds although the data is gone. Two things follow:
//! - A failure is remembered, and every later flush fails with it until the file is opened anew.
//! - Of two `fdatasync` running at once only one would be told. So one runs at a time, and those who wait meanwhile
//!   share the next one: it begins after all their writes, and many queues that flush together cost one flush.

use std::io;
use std::sync::PoisonError;

#[cfg(tsan)]
use crate::sync::{Condvar, Mutex, MutexGuard};
#[cfg(not(tsan))]
use std::sync::{Condvar, Mutex, MutexGuard};

/// The flushes of one open file.
#[derive(Debug)]
pub(super) struct Flusher {
    state: Mutex<State>,
    ended: Condvar,
}

impl Flusher {
    /// `sticky`: writes go through the page cache, so that a failure loses data for good. With O_DIRECT a failed flush
    /// leaves nothing behind in the kernel and may be tried again.
    pub(super) fn new(sticky: bool) -> Self {
        Self {
            state: Mutex::new(State::new(sticky)),
            ended: Condvar::new(),
        }
    }

    /// Returns when a flush that began after this call has ended, with its result. Runs `sync`, which must not panic,
    /// itself if nobody else does.
    pub(super) fn flush(&self, sync: impl Fn() -> io::Result<()>) -> io::Result<()> {
        let mut state = self.lock();
        let needed = state.next();
        loop {
            match state.turn(needed) {
                Turn::Over(result) => return result,
                Turn::Wait => state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner),
                Turn::Run => {
                    drop(state);
                    let result = sync();
                    state = self.lock();
                    state.end(&result);
                    self.ended.notify_all();
                }
            }
        }
    }

    /// True once no flush will succeed any more.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.lock().failed, Some((u64::MAX, _)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who flushes when. Flushes are numbered from 1.
#[derive(Debug)]
struct State {
    sticky: bool,
    begun: u64,
    /// `begun`, or one less while a flush runs.
    ended: u64,
    /// The last flush that failed (`u64::MAX`: this one and all to come), with its errno.
    failed: Option<(u64, i32)>,
}

/// What a caller is to do now.
#[derive(Debug)]
enum Turn {
    /// Wait for the end of the flush that is running.
    Wait,
    /// Run the next flush.
    Run,
    /// Nothing: this is the outcome.
    Over(io::Result<()>),
}

impl State {
    fn new(sticky: bool) -> Self {
        Self {
            sticky,
            begun: 0,
            ended: 0,
            failed: None,
        }
    }

    /// The first flush that covers everything written by now: not one that is running already.
    fn next(&self) -> u64 {
        self.begun + 1
    }

    /// The turn of a caller who needs flush `needed` or a later one.
    fn turn(&mut self, needed: u64) -> Turn {
        match self.failed {
            // It may be a later one than needed that failed: an error too many, never one too few.
            Some((last, errno)) if last >= needed => Turn::Over(Err(io::Error::from_raw_os_error(errno))),
            _ if self.ended >= needed => Turn::Over(Ok(())),
            _ if self.begun > self.ended => Turn::Wait,
            _ => {
                self.begun += 1;
                Turn::Run
            }
        }
    }

    /// The flush that was running has ended.
    fn end(&mut self, result: &io::Result<()>) {
        self.ended = self.begun;
        if let Err(e) = result {
            let last = if self.sticky { u64::MAX } else { self.ended };
            self.failed = Some((last, e.raw_os_error().unwrap_or(libc::EIO)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

    fn eio() -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EIO))
    }

    #[test]
    fn those_who_come_during_a_flush_share_the_next_one() {
        let mut state = State::new(true);
        let first = state.next();
        assert!(matches!(state.turn(first), Turn::Run));
        // Three writes and flushes while the first one runs: it may have missed all of them.
        let late = [(); 3].map(|()| state.next());
        assert!(
            late.iter()
                .all(|&needed| matches!(state.turn(needed), Turn::Wait))
        );
        state.end(&Ok(()));
        assert!(matches!(state.turn(first), Turn::Over(Ok(()))));
        assert!(matches!(state.turn(late[1]), Turn::Run));
        assert!(matches!(state.turn(late[0]), Turn::Wait));
        state.end(&Ok(()));
        assert!(
            late.iter()
                .all(|&needed| matches!(state.turn(needed), Turn::Over(Ok(()))))
        );
        assert_eq!(state.begun, 2);
    }

    #[test]
    fn all_who_share_a_flush_learn_that_it_failed_however_late_they_look() {
        for sticky in [false, true] {
            let mut state = State::new(sticky);
            let needed = state.next();
            assert!(matches!(state.turn(needed), Turn::Run));
            state.end(&eio());
            assert!(matches!(state.turn(needed), Turn::Over(Err(_))));
            // A flush that succeeds afterwards does not save those who needed the one before.
            let next = state.next();
            if !sticky {
                assert!(matches!(state.turn(next), Turn::Run));
                state.end(&Ok(()));
                assert!(matches!(state.turn(next), Turn::Over(Ok(()))));
            }
            assert!(
                matches!(state.turn(needed), Turn::Over(Err(_))),
                "sticky: {sticky}"
            );
        }
    }

    #[test]
    fn through_the_page_cache_a_failure_is_final() {
        let flusher = Flusher::new(true);
        assert_eq!(flusher.flush(eio).unwrap_err().raw_os_error(), Some(libc::EIO));
        assert!(flusher.is_over());
        // The kernel has reported it and would say that all is well.
        assert_eq!(
            flusher.flush(|| Ok(())).unwrap_err().raw_os_error(),
            Some(libc::EIO)
        );
    }

    #[test]
    fn without_a_page_cache_a_flush_may_be_tried_again() {
        let flusher = Flusher::new(false);
        flusher.flush(eio).unwrap_err();
        assert!(!flusher.is_over());
        flusher.flush(|| Ok(())).unwrap();
        flusher.flush(eio).unwrap_err();
    }

    #[test]
    fn every_flush_covers_what_was_written_before_it_and_never_two_run() {
        let (flusher, written, stable, running) = (
            Flusher::new(true),
            AtomicU64::new(0),
            AtomicU64::new(0),
            AtomicU64::new(0),
        );
        let sync = || {
            assert_eq!(running.fetch_add(1, SeqCst), 0);
            let covered = written.load(SeqCst);
            std::thread::yield_now();
            stable.store(covered, SeqCst);
            running.fetch_sub(1, SeqCst);
            Ok(())
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let mine = written.fetch_add(1, SeqCst) + 1;
                        flusher.flush(sync).unwrap();
                        assert!(stable.load(SeqCst) >= mine);
                    }
                });
            }
        });
    }
}
