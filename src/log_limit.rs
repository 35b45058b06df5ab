//! Log lines that a guest, a frontend or a disk can cause: a few per cause and interval, however often it happens.
//!
//! For paths on which something has gone wrong already, or which are rare: it takes a lock and a copy of the cause. What
//! belongs to a disk is counted with that disk, so that no disk hides the lines of another one.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// After this time a cause is logged again.
const INTERVAL: Duration = Duration::from_secs(10);

/// Lines per interval about what happens in normal use, too: connections that come and go.
const NORMAL_USE: u32 = 20;

/// Most causes of one kind that are told apart; further ones are one.
const MAX_CAUSES: usize = 256;

/// The number of lines that were left out before this one; `None` for none, so that a log line does not show it.
pub type Suppressed = Option<NonZeroU64>;

/// Decides which lines are logged. Any thread.
#[derive(Debug, Default)]
pub struct LogLimit(Mutex<BTreeMap<&'static str, Causes>>);

/// Causes of one kind.
#[derive(Debug, Default)]
struct Causes {
    known: BTreeMap<String, Cause>,
    others: Option<Cause>,
}

#[derive(Debug)]
struct Cause {
    /// The interval that is counted.
    start: Instant,
    logged: u32,
    suppressed: u64,
}

impl LogLimit {
    /// Nothing has been logged yet.
    pub const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    /// Counts a line about `detail` of the kind `what`; returns whether to log it: one per interval.
    pub fn pass(&self, what: &'static str, detail: impl Display) -> Option<Suppressed> {
        self.pass_at(what, detail.to_string(), 1, Instant::now())
    }

    /// The same for what is no trouble: it is left out only when it happens far more often than in normal use.
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
    fn each_cause_has_one_line_per_interval_and_counts_the_others() {
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
    fn normal_use_is_logged_in_full_and_floods_are_not() {
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
    fn causes_without_end_take_memory_only_up_to_a_limit() {
        let (limit, now) = (LogLimit::new(), Instant::now());
        let passes = |n: &i32| limit.pass_at("refused", n.to_string(), 1, now).is_some();
        assert_eq!((0..10_000).filter(passes).count(), MAX_CAUSES + 1);
    }

    #[test]
    fn many_causes_of_one_kind_hide_none_of_another() {
        let (limit, now) = (LogLimit::new(), Instant::now());
        for n in 0..10_000 {
            limit.pass_at("refused", n.to_string(), 1, now);
        }
        assert_eq!(limit.pass_at("failed", String::new(), 1, now), FIRST);
    }
}
