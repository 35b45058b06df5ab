//! Counts the requests of one queue that wait for their throttle group.

use crate::counter::Counter;

/// The waiting requests of one queue. One IOThread writes, any thread reads.
#[derive(Debug, Default)]
pub struct Waits {
    now: Counter,
    ever: Counter,
}

impl Waits {
    /// Returns the number of requests that wait.
    pub fn now(&self) -> u64 {
        self.now.get()
    }

    /// Returns the number of requests that have waited, including those that still do.
    pub fn ever(&self) -> u64 {
        self.ever.get()
    }

    /// Goes on counting after these.
    pub(crate) fn restore(&self, ever: u64) {
        self.ever.set(ever);
    }

    /// A request begins to wait.
    pub(crate) fn begin(&self) {
        self.now.add(1);
        self.ever.add(1);
    }

    /// Some requests wait no longer.
    pub(crate) fn end(&self, requests: u64) {
        self.now.sub(requests);
    }
}
