//! Frees IOThreads that wait in a write to a full eventfd of a frontend.
//!
//! The frontend decides whether its eventfds are blocking, and how full they are. The kernel offers no write to an
//! eventfd that never waits, and to ask first costs a system call for each notification, with an answer that may be out
//! of date. So writes are watched instead. The watchdog wakes up every `TICK` while eventfds are written to, and
//! empties those in which a write has been waiting since the tick before. It sleeps while nothing is written.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crate::eventfd;

/// The time between two looks at the writes. A write waits for twice this time at most.
const TICK: Duration = Duration::from_millis(50);

/// The number of ticks without a write after which the watchdog sleeps.
const QUIET_TICKS: u32 = 4;

/// The time for which a tick competes with a frontend that fills its eventfd again and again.
const STRUGGLE: Duration = Duration::from_millis(10);

static WATCHDOG: Watchdog = Watchdog {
    asleep: AtomicBool::new(false),
    thread: OnceLock::new(),
    targets: Mutex::new(Vec::new()),
};

struct Watchdog {
    /// The watchdog sleeps until the next write.
    asleep: AtomicBool,
    thread: OnceLock<Thread>,
    targets: Mutex<Vec<Weak<Watched>>>,
}

/// Watches all writes to eventfds of frontends, on a thread of its own, as long as the process lives.
///
/// Without this thread, a frontend can hold an IOThread, and so all disks of that IOThread, until it ends. Only the first
/// thread watches; another one returns at once.
pub fn run() {
    if WATCHDOG.thread.set(thread::current()).is_ok() {
        loop {
            WATCHDOG.watch();
            WATCHDOG.sleep();
        }
    }
}

impl Watchdog {
    /// Watches until nothing has been written for a while.
    fn watch(&self) {
        let mut quiet = 0;
        while quiet < QUIET_TICKS {
            thread::sleep(TICK);
            quiet += 1;
            for target in self.targets() {
                let writes = target.writes.load(Ordering::Relaxed);
                if target.seen.swap(writes, Ordering::Relaxed) != writes {
                    quiet = 0;
                } else if is_writing(writes) {
                    quiet = 0;
                    target.free(writes);
                }
            }
        }
    }

    /// Sleeps until something is written.
    fn sleep(&self) {
        // SeqCst, here and in `Watched::signal`: either the writer sees that we sleep, or we see its write.
        self.asleep.store(true, Ordering::SeqCst);
        let missed = self
            .targets()
            .iter()
            .any(|target| target.writes.load(Ordering::SeqCst) != target.seen.load(Ordering::Relaxed));
        while !missed && self.asleep.load(Ordering::Relaxed) {
            thread::park();
        }
        self.asleep.store(false, Ordering::Relaxed);
    }

    #[cold]
    fn wake(&self) {
        self.asleep.store(false, Ordering::Relaxed);
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Returns the eventfds that are in use.
    fn targets(&self) -> Vec<Arc<Watched>> {
        self.lock().iter().filter_map(Weak::upgrade).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Watched>>> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An eventfd of a frontend to which one thread writes.
#[derive(Debug)]
pub(crate) struct Watched {
    file: Arc<File>,
    /// Counts twice for each write, when it begins and when it ends.
    writes: AtomicU32,
    /// The count at the last tick.
    seen: AtomicU32,
    /// A write to an eventfd of this frontend had to wait, or one was full from the beginning. Each write asks first from
    /// then on.
    suspect: Arc<AtomicBool>,
}

fn is_writing(writes: u32) -> bool {
    !writes.is_multiple_of(2)
}

impl Watched {
    /// Has writes to this eventfd watched. The eventfds of one disk share `suspect`.
    pub(crate) fn new(file: impl Into<Arc<File>>, suspect: &Arc<AtomicBool>) -> Arc<Self> {
        let file = file.into();
        suspect.fetch_or(eventfd::is_full(&file), Ordering::Relaxed);
        let watched = Arc::new(Self {
            suspect: Arc::clone(suspect),
            file,
            writes: AtomicU32::new(0),
            seen: AtomicU32::new(0),
        });
        WATCHDOG.lock().push(Arc::downgrade(&watched));
        watched
    }

    /// Adds one to the counter. A full counter counts as signalled already.
    ///
    /// Returns only after up to two ticks if the frontend fills the eventfd. Always the same thread.
    ///
    /// # Errors
    /// The file is no eventfd.
    pub(crate) fn signal(&self) -> io::Result<()> {
        if self.suspect.load(Ordering::Relaxed) && eventfd::is_full(&self.file) {
            return Ok(());
        }
        let before = self.writes.load(Ordering::Relaxed);
        self.writes.swap(before.wrapping_add(1), Ordering::SeqCst);
        if WATCHDOG.asleep.load(Ordering::SeqCst) {
            WATCHDOG.wake();
        }
        let signalled = eventfd::signal(&self.file);
        self.writes.store(before.wrapping_add(2), Ordering::Release);
        signalled
    }

    /// Ends a write that waits. The watchdog's thread.
    ///
    /// No signal is lost: the waiting write makes the eventfd readable again.
    fn free(&self, writes: u32) {
        self.suspect.store(true, Ordering::Relaxed);
        let end = Instant::now() + STRUGGLE;
        while self.writes.load(Ordering::Acquire) == writes && Instant::now() < end {
            if eventfd::is_full(&self.file) {
                // Another reader may have been faster, which is just as good.
                let _ = eventfd::drain(&self.file);
            }
            thread::yield_now();
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        WATCHDOG.lock().retain(|target| target.strong_count() > 0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{FromRawFd, IntoRawFd};

    use vmm_sys_util::eventfd::EventFd;

    use super::*;

    const FULL: u64 = u64::MAX - 1;

    fn watched(flags: i32) -> (EventFd, Arc<Watched>) {
        thread::spawn(run);
        let event = EventFd::new(flags).unwrap();
        let file = file(&event);
        (event, Watched::new(file, &Arc::default()))
    }

    fn file(event: &EventFd) -> File {
        // SAFETY: a duplicate that nobody else has.
        unsafe { File::from_raw_fd(event.try_clone().unwrap().into_raw_fd()) }
    }

    #[test]
    fn a_write_to_a_full_eventfd_ends() {
        for flags in [0, libc::EFD_SEMAPHORE, libc::EFD_NONBLOCK] {
            let (event, target) = watched(flags);
            event.write(FULL).unwrap();
            target.signal().unwrap();
            assert!(event.read().unwrap() > 0, "it stays signalled");
        }
    }

    #[test]
    fn a_full_eventfd_is_suspect_from_the_beginning() {
        let event = EventFd::new(0).unwrap();
        event.write(FULL).unwrap();
        assert!(
            Watched::new(file(&event), &Arc::default())
                .suspect
                .load(Ordering::Relaxed)
        );
    }

    #[test]
    fn a_frontend_that_keeps_filling_its_eventfd_loses() {
        let (event, target) = watched(0);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let fill = || {
                while !stop.load(Ordering::Relaxed) {
                    event.write(FULL).unwrap();
                }
            };
            let fillers = [(); 3].map(|()| scope.spawn(fill));
            for _ in 0..20 {
                target.suspect.store(false, Ordering::Relaxed);
                target.signal().unwrap();
            }
            stop.store(true, Ordering::Relaxed);
            // Each of them may still wait in its last write.
            while !fillers.iter().all(|filler| filler.is_finished()) {
                eventfd::drain(&target.file).unwrap();
            }
        });
    }

    #[test]
    fn eventfds_out_of_use_are_forgotten() {
        let (_event, target) = watched(0);
        let address = Arc::as_ptr(&target);
        let known = || WATCHDOG.lock().iter().any(|target| target.as_ptr() == address);
        assert!(known());
        drop(target);
        assert!(!known());
    }
}
