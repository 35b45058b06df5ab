//! The time that the loop has read last, so that the parts of a pass share one look at the clock.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::sys::clock::monotonic_nanos;

/// Nanoseconds of the monotonic clock.
pub(crate) type Nanos = u64;

/// The clock of one context. Used only by its thread.
#[derive(Debug)]
pub(crate) struct LoopClock {
    last: Cell<Nanos>,
    /// One time in both forms.
    base: (Instant, Nanos),
}

impl LoopClock {
    pub(super) fn new() -> Self {
        let base = (Instant::now(), monotonic_nanos());
        Self {
            last: Cell::new(base.1),
            base,
        }
    }

    /// Reads the clock.
    #[inline]
    pub(crate) fn read(&self) -> Nanos {
        let now = monotonic_nanos();
        self.last.set(now);
        now
    }

    /// Returns the time that was read last. The loop reads the clock in each pass, after it has waited.
    #[inline]
    pub(crate) fn last(&self) -> Nanos {
        self.last.get()
    }

    /// Converts a time to nanoseconds.
    pub(super) fn nanos(&self, time: Instant) -> Nanos {
        let since = time.saturating_duration_since(self.base.0).as_nanos();
        self.base
            .1
            .saturating_add(Nanos::try_from(since).unwrap_or(Nanos::MAX))
    }

    /// Converts nanoseconds to a time.
    pub(super) fn instant(&self, nanos: Nanos) -> Instant {
        self.base.0 + Duration::from_nanos(nanos.saturating_sub(self.base.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_the_same_time() {
        let clock = LoopClock::new();
        let later = Instant::now() + Duration::from_secs(5);
        assert_eq!(clock.instant(clock.nanos(later)), later);
        let now = clock.read();
        assert_eq!(clock.last(), now);
        assert!(clock.instant(now) <= Instant::now());
    }
}
