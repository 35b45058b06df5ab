//! A client's order to report the slow requests of a disk. Any thread.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::aio::clock::Nanos;
use crate::sys::clock::monotonic_nanos;

/// The order. It expires by itself, because the client may vanish.
#[derive(Debug, Default)]
pub struct Trace {
    /// Shortest time of a request that is reported.
    slower_than: AtomicU64,
    /// The end of the order. 0: there was none.
    until: AtomicU64,
}

impl Trace {
    /// Reports requests that take at least `slower_than`, for `time` from now on. Replaces the last order.
    pub fn set(&self, slower_than: Duration, time: Duration) {
        let nanos = |time: Duration| Nanos::try_from(time.as_nanos()).unwrap_or(Nanos::MAX);
        self.slower_than.store(nanos(slower_than), Ordering::Relaxed);
        self.until
            .store(monotonic_nanos().saturating_add(nanos(time)), Ordering::Relaxed);
    }

    /// Returns whether requests that are taken at this time are traced.
    #[inline]
    pub(super) fn is_on(&self, now: Nanos) -> bool {
        now < self.until.load(Ordering::Relaxed)
    }

    /// Returns the shortest time of a request that is reported.
    pub(super) fn limit(&self) -> Nanos {
        self.slower_than.load(Ordering::Relaxed)
    }
}
