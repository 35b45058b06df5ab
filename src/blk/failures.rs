//! Reports requests that fail, that wait for room on the disk, or that take too long. The queues of a disk share this,
//! so that a cause is reported once. Any thread.
//!
//! Requests that succeed never come here.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::error_policy::{ErrorPolicy, Verdict, is_unsupported};
use super::notice::{Action, Notice, Notices};
use crate::io::IoOp;
use crate::log_limit::LogLimit;

/// How often a disk that stays full is reported.
const STILL_HELD: Duration = Duration::from_secs(60);

/// The failed requests of a disk, and its policy for them.
#[derive(Debug, Default)]
pub struct Failures {
    /// How the disk deals with them.
    pub policy: ErrorPolicy,
    /// The listeners to tell.
    pub notices: Notices,
    limit: LogLimit,
    held: Mutex<Held>,
}

/// Requests that wait for room on the disk.
#[derive(Debug, Default)]
struct Held {
    count: usize,
    since: Option<Instant>,
    /// When this was last logged. If it was, its end is logged as well.
    told: Option<Instant>,
}

/// A request as log lines describe it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) disk: &'a str,
    pub(super) queue: u16,
    pub(super) op: &'static str,
    /// `None` for requests without a single place, such as flushes.
    pub(super) sector: Option<u64>,
}

impl Failures {
    /// No request has failed yet.
    pub fn new(policy: ErrorPolicy) -> Self {
        Self {
            policy,
            ..Self::default()
        }
    }

    /// Logs a request that failed, unless the same was logged recently.
    pub(super) fn failed(&self, place: &Place<'_>, op: IoOp, verdict: Verdict, error: &io::Error) {
        let (consequence, action) = match verdict {
            Verdict::Report if is_unsupported(op, error) => (
                "the guest is told that the disk cannot do this (UNSUPP)",
                Action::Report,
            ),
            Verdict::Report => ("the guest gets an I/O error", Action::Report),
            Verdict::Ignore => ("ignored: the guest is told that all is well", Action::Ignore),
            Verdict::Hold => return,
        };
        self.notices.failed(|| notice(place, action, error));
        let hint = hint(error);
        let Place {
            disk,
            queue,
            op,
            sector,
        } = place;
        let cause = format_args!("{op} {:?}", error.raw_os_error());
        let Some(suppressed) = self.limit.pass(consequence, cause) else {
            return tracing::debug!(disk, queue, op, sector, %error, "request failed; {consequence}");
        };
        tracing::warn!(disk, queue, op, sector, %error, suppressed, "request failed{hint}; {consequence}");
    }

    /// A request waits for room.
    pub(super) fn held(&self, place: &Place<'_>, error: &io::Error) {
        let mut held = self.lock();
        held.count += 1;
        if held.since.is_some() {
            return;
        }
        let now = Instant::now();
        held.since = Some(now);
        self.notices.tell(|| notice(place, Action::Stop, error));
        self.notices.tell(|| Notice::Held);
        held.told = self.limit.pass("no room", "").map(|_| now);
        if held.told.is_some() {
            let Place { disk, op, sector, .. } = place;
            tracing::warn!(disk, op, sector, %error, "no room on the disk: held, and tried again until there is some");
        }
    }

    /// Requests were tried again, and there was no room.
    pub(super) fn still_held(&self, disk: &str) {
        let mut held = self.lock();
        if let Some(since) = held.since
            && held.told.is_none_or(|told| told.elapsed() >= STILL_HELD)
            && let Some(suppressed) = self.limit.pass("still no room", "")
        {
            held.told = Some(Instant::now());
            let (count, seconds) = (held.count, since.elapsed().as_secs());
            tracing::warn!(
                disk,
                held = count,
                seconds,
                suppressed,
                "still no room on the disk"
            );
        }
    }

    /// Requests do not wait any more: there is room, or they were given up.
    pub(super) fn released(&self, disk: &str, requests: usize) {
        let mut held = self.lock();
        held.count = held.count.saturating_sub(requests);
        if held.count == 0
            && let Some(since) = held.since.take()
        {
            self.notices.tell(|| Notice::Resumed(since.elapsed()));
            if held.told.take().is_none() {
                return;
            }
            let seconds = since.elapsed().as_secs_f32();
            tracing::warn!(disk, seconds, "no request is held for lack of room any more");
        }
    }

    /// Logs a request that takes too long, unless the same was logged recently.
    pub(super) fn late(&self, place: &Place<'_>, age: Duration) {
        let (queue, op) = (place.queue, place.op);
        self.notices.tell(|| Notice::Late { queue, op, age });
        let Some(suppressed) = self.limit.pass("late", place.op) else {
            return;
        };
        let seconds = age.as_secs_f64();
        let Place {
            disk,
            queue,
            op,
            sector,
        } = place;
        tracing::warn!(
            disk,
            queue,
            op,
            sector,
            seconds,
            suppressed,
            "the disk does not answer: request is still in flight"
        );
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // Nothing panics under the lock.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn notice(place: &Place<'_>, action: Action, error: &io::Error) -> Notice {
    Notice::Failed {
        op: place.op,
        action,
        no_space: matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)),
        reason: error.to_string(),
    }
}

/// Explains errors that are not obvious.
fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            " (the image ends there: it is shorter than it was, or than SIGHUP has made known)"
        }
        Some(libc::EFAULT) => " (guest memory is gone: its file was cut short, or it has failed)",
        Some(libc::EFBIG) => " (larger than the file system or 'ulimit -f' allows)",
        Some(libc::EROFS) => " (the file system has become read-only)",
        _ => "",
    }
}
