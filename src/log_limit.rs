//! Limits the log lines that a guest, a frontend or a disk can cause to a few per cause and interval.
//!
//! A check takes a lock and copies the cause, so it belongs only on error paths and rare paths. Each disk has its own
//! limits for its lines, so that no disk suppresses the lines of another disk.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The interval after which a cause is logged again.
const INTERVAL: Duration = Duration::from_secs(10);

/// Lines per interval about events that also happen in normal use: connections that come and go.
const NORMAL_USE: u32 = 20;

/// The most causes of one kind that are told apart. All further causes count as one.
const MAX_CAUSES: usize = 256;

/// The number of lines suppressed before this one. `None` stands for zero, so that the log line does not show it.
pub type Suppressed = Option<NonZeroU64>;

/// Decides which lines are logged. Any thread may use it.
#[derive(Debug, Default)]
pub struct LogLimit(Mutex<BTreeMap<&'static str, Causes>>);

/// The causes of one kind.
#[derive(Debug, Default)]
struct Causes {
    known: BTreeMap<String, Cause>,
    others: Option<Cause>,
}

#[derive(Debug)]
struct Cause {
    /// The start of the current interval.
    start: Instant,
    logged: u32,
    suppressed: u64,
}

impl LogLimit {
    /// Makes a limit that has counted nothing yet.
    pub const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    /// Counts a line about `detail` of the kind `what`. Returns `Some` if the line should be logged: one per interval.
    pub fn pass(&self, what: &'static str, detail: impl Display) -> Option<Suppressed> {
        self.pass_at(what, detail.to_string(), 1, Instant::now())
    }

    /// Like [`pass`](Self::pass), for events that are no trouble. Their lines are suppressed only when the events come
    /// far more often than in normal use.
    pub fn pass_normal(&self, what: &'static str, detail: impl Display) -> Option<Suppressed> {
        self.pass_at(what, detail.to_string(), NORMAL_USE, Instant::now())
    }

    fn pass_at(&self, what: &'static str, detail: String, limit: u32, now: Instant) -> Option<Suppressed> {
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let causes = kinds.entry(what).or_default();
        let new = || Cause {
            start: now,
            logged: 0,
            suppressed: 0,
        };
        let full = causes.known.len() >= MAX_CAUSES && !causes.known.contains_key(&detail);
        let cause = match full {
            true => causes.others.get_or_insert_with(new),
            false => causes.known.entry(detail).or_insert_with(new),
        };
        cause.pass(limit, now)
    }
}

impl Cause {
    fn pass(&mut self, limit: u32, now: Instant) -> Option<Suppressed> {
        if now.saturating_duration_since(self.start) >= INTERVAL {
            (self.start, self.logged) = (now, 0);
        }
        if self.logged >= limit {
            self.suppressed += 1;
            return None;
        }
        self.logged += 1;
        Some(NonZeroU64::new(std::mem::take(&mut self.suppressed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Option<Suppressed> = Some(None);

    #[test]
    fn each_cause_gets_one_line_per_interval() {
        let (limit, start) = (LogLimit::new(), Instant::now());
        let pass = |detail: &str, millis| {
            limit.pass_at(
                "failed",
                detail.to_owned(),
                1,
                start + Duration::from_millis(millis),
            )
        };
        assert_eq!(pass("read", 0), FIRST);
        assert_eq!(pass("write", 1), FIRST);
        assert!((1..100).all(|n| pass("read", n * 100).is_none()));
        assert_eq!(pass("read", 10_000), Some(NonZeroU64::new(99)));
        assert_eq!(pass("read", 20_000), FIRST);
    }

    #[test]
    fn normal_use_is_logged_and_floods_are_limited() {
        let (limit, start) = (LogLimit::new(), Instant::now());
        let pass = |seconds| {
            limit.pass_at(
                "came",
                String::new(),
                NORMAL_USE,
                start + Duration::from_secs(seconds),
            )
        };
        assert!((0..NORMAL_USE).all(|_| pass(0) == FIRST));
        assert!((0..80).all(|_| pass(9).is_none()));
        assert_eq!(pass(10), Some(NonZeroU64::new(80)));
        assert_eq!(pass(11), FIRST);
    }

    #[test]
    fn endless_causes_use_bounded_memory() {
        let (limit, now) = (LogLimit::new(), Instant::now());
        let passes = |n: &i32| limit.pass_at("refused", n.to_string(), 1, now).is_some();
        assert_eq!((0..10_000).filter(passes).count(), MAX_CAUSES + 1);
    }

    #[test]
    fn many_causes_hide_no_other_kind() {
        let (limit, now) = (LogLimit::new(), Instant::now());
        for n in 0..10_000 {
            limit.pass_at("refused", n.to_string(), 1, now);
        }
        assert_eq!(limit.pass_at("failed", String::new(), 1, now), FIRST);
    }
}
