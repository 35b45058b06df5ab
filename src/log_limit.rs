//! Log lines that a guest, a frontend or a disk can cause: one per cause and interval, however often it happens.
//!
//! For paths on which something has gone wrong already: it takes a lock.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// At most one line per cause in this time.
const INTERVAL: Duration = Duration::from_secs(10);

/// Most causes that are told apart; further ones are one.
const MAX_CAUSES: usize = 256;

/// Decides which lines are logged. Any thread.
#[derive(Debug)]
pub struct LogLimit<K>(Mutex<Causes<K>>);

#[derive(Debug)]
struct Causes<K> {
    known: BTreeMap<K, Cause>,
    others: Option<Cause>,
}

#[derive(Clone, Copy, Debug)]
struct Cause {
    logged: Instant,
    /// Lines left out since.
    suppressed: u64,
}

impl<K: Ord> LogLimit<K> {
    /// Nothing has been logged yet.
    pub const fn new() -> Self {
        let causes = Causes {
            known: BTreeMap::new(),
            others: None,
        };
        Self(Mutex::new(causes))
    }

    /// Whether a line of this cause is to be logged now: then the number of those that were left out before it.
    pub fn pass(&self, cause: K) -> Option<u64> {
        self.pass_at(cause, Instant::now())
    }

    fn pass_at(&self, cause: K, now: Instant) -> Option<u64> {
        let causes = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = causes.known.get_mut(&cause) {
            return known.pass(now);
        }
        let first = Cause {
            logged: now,
            suppressed: 0,
        };
        if causes.known.len() < MAX_CAUSES {
            causes.known.insert(cause, first);
            return Some(0);
        }
        match &mut causes.others {
            Some(others) => others.pass(now),
            none => {
                *none = Some(first);
                Some(0)
            }
        }
    }
}

impl<K: Ord> Default for LogLimit<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl Cause {
    fn pass(&mut self, now: Instant) -> Option<u64> {
        if now.saturating_duration_since(self.logged) < INTERVAL {
            self.suppressed += 1;
            return None;
        }
        self.logged = now;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_has_one_line_per_interval_and_counts_the_others() {
        let (limit, start) = (LogLimit::new(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(limit.pass_at("read", at(0)), Some(0));
        assert_eq!(limit.pass_at("write", at(1)), Some(0));
        assert!((1..100).all(|n| limit.pass_at("read", at(n * 100)).is_none()));
        assert_eq!(limit.pass_at("read", at(10_000)), Some(99));
        assert_eq!(limit.pass_at("read", at(20_000)), Some(0));
    }

    #[test]
    fn causes_without_end_take_memory_only_up_to_a_limit() {
        let (limit, now) = (LogLimit::new(), Instant::now());
        let logged = (0..10_000).filter(|&n| limit.pass_at(n, now).is_some()).count();
        assert_eq!(logged, MAX_CAUSES + 1);
    }
}
