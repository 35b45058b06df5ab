//! Limits how often something is done.

use std::time::{Duration, Instant};

/// Allows a number of events in each interval.
#[derive(Debug)]
pub(super) struct Pace {
    count: u32,
    interval: Duration,
    /// The end of the current interval, and the events that it still allows.
    end: Option<Instant>,
    left: u32,
}

impl Pace {
    pub(super) fn new(count: u32, interval: Duration) -> Self {
        Self {
            count,
            interval,
            end: None,
            left: 0,
        }
    }

    /// Returns the number of events that are allowed now.
    pub(super) fn left(&mut self, now: Instant) -> u32 {
        if self.end.is_none_or(|end| end <= now) {
            self.end = Some(now + self.interval);
            self.left = self.count;
        }
        self.left
    }

    /// Counts an event.
    pub(super) fn spend(&mut self) {
        self.left = self.left.saturating_sub(1);
    }

    /// Returns the time when further events are allowed, if none is allowed now.
    pub(super) fn pause(&self) -> Option<Instant> {
        self.end.filter(|_| self.left == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_interval_allows_the_same_number() {
        let start = Instant::now();
        let mut pace = Pace::new(2, Duration::from_secs(1));
        assert_eq!(pace.pause(), None);
        for later in [0, 1, 5] {
            let now = start + Duration::from_secs(later);
            assert_eq!(pace.left(now), 2);
            pace.spend();
            assert_eq!((pace.left(now), pace.pause()), (1, None));
            pace.spend();
            let later = now + Duration::from_millis(999);
            assert_eq!(
                (pace.left(later), pace.pause()),
                (0, Some(now + Duration::from_secs(1)))
            );
        }
    }
}
