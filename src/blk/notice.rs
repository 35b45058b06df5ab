//! Notices for the managers of a disk.
//!
//! The disk's threads tell, and must not wait: the listener only takes note, and limits repetition. But a notice takes
//! longer than a request, so when very many requests fail, most of them are not told.

use std::fmt;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Failed requests that are told within [`WINDOW`].
const FAILURES: u32 = 32;
const WINDOW: Duration = Duration::from_millis(100);

/// Something that has happened to a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A frontend has connected, as far as known from this process and user.
    Connected {
        /// The process.
        pid: Option<i32>,
        /// The user.
        uid: Option<u32>,
    },
    /// The frontend has gone.
    Disconnected,
    /// A request has failed.
    Failed {
        /// The name of the operation.
        op: &'static str,
        /// The decision about the request.
        action: Action,
        /// The disk is full.
        no_space: bool,
        /// The error.
        reason: String,
    },
    /// Requests are held since now, because the disk is full.
    Held,
    /// No request is held any more, after this time.
    Resumed(Duration),
    /// A request takes longer than it should.
    Late {
        /// The queue.
        queue: u16,
        /// The name of the operation.
        op: &'static str,
        /// The time since its start.
        age: Duration,
    },
    /// A traced request was slow.
    Slow(SlowRequest),
    /// A ring is stopped because it is broken.
    RingBroken {
        /// The queue.
        queue: u16,
        /// The reason.
        reason: String,
    },
}

/// A request, and where its time went. Times are in nanoseconds, and add up to the time from the visit that has taken the
/// request to the publication of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowRequest {
    /// The queue.
    pub queue: u16,
    /// The name of the operation.
    pub op: &'static str,
    /// First byte on the disk. `None` for a flush.
    pub offset: Option<u64>,
    /// Length.
    pub bytes: u64,
    /// It waited for its throttle group.
    pub throttled: u64,
    /// It waited for a worker, or for room in the kernel's queue.
    pub waited: u64,
    /// The storage had it.
    pub storage: u64,
    /// It was done, and waited for its IOThread.
    pub returned: u64,
    /// It was answered, and the answer waited to be published with others.
    pub published: u64,
    /// Number of other slow requests of the queue since the last report.
    pub others: u64,
}

/// The decision about a request that has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The guest gets an error.
    Report,
    /// The guest is told that it succeeded.
    Ignore,
    /// It waits, and is tried again.
    Stop,
}

/// Takes note of what happens. Any thread; must not wait.
pub type OnNotice = Box<dyn Fn(Notice) + Send + Sync>;

/// Where the threads of a disk tell what happens. Without a listener it costs nothing.
#[derive(Default)]
pub struct Notices {
    listener: OnceLock<OnNotice>,
    /// The start of the present window, and the number of failed requests since then.
    failures: Mutex<Option<(Instant, u32)>>,
}

impl Notices {
    /// Tells `listener` from now on. The first one stays.
    pub fn listen(&self, listener: OnNotice) {
        let _ = self.listener.set(listener);
    }

    /// Tells what has happened.
    pub(crate) fn tell(&self, notice: impl FnOnce() -> Notice) {
        if let Some(listener) = self.listener.get() {
            listener(notice());
        }
    }

    /// Tells that a request has failed, unless many others just have.
    pub(crate) fn failed(&self, notice: impl FnOnce() -> Notice) {
        let now = Instant::now();
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let (start, count) = match *failures {
            Some((start, count)) if now.saturating_duration_since(start) < WINDOW => (start, count + 1),
            _ => (now, 1),
        };
        *failures = Some((start, count));
        drop(failures);
        if count <= FAILURES {
            self.tell(notice);
        }
    }
}

impl fmt::Debug for Notices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notices").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn of_very_many_failures_some_are_told() {
        let (notices, told) = (Notices::default(), Arc::new(AtomicU32::new(0)));
        let count = Arc::clone(&told);
        notices.listen(Box::new(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        }));
        let failing = |times| (0..times).for_each(|_| notices.failed(|| Notice::Held));
        failing(FAILURES);
        assert_eq!(told.load(Ordering::Relaxed), FAILURES);
        failing(100_000);
        assert!(told.load(Ordering::Relaxed) < 50_000);
    }
}
