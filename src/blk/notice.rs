//! Notices for the managers of a disk.
//!
//! The disk's threads tell, and must not wait: the listener only takes note. A guest may cause notices at will, so the
//! listener also limits repetition.

use std::fmt;
use std::sync::OnceLock;
use std::time::Duration;

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
}

impl fmt::Debug for Notices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notices").finish_non_exhaustive()
    }
}
