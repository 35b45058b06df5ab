//! Decides whether a visit notifies the driver before its end, so that both work at the same time. IOThread only.

use std::time::{Duration, Instant};

/// A visit that takes longer than this notifies a driver that waits for this queue alone of its first completions.
const LONG_VISIT: Duration = Duration::from_micros(20);

/// Minimum number of completions worth an early notification.
const WORTH_A_NOTIFICATION: usize = 32;

/// The chance of a visit to notify the driver before its end, once.
#[derive(Clone, Copy, Debug)]
pub(super) struct EarlyNotification {
    /// When the engine got the batch. `None`: no early notification.
    start: Option<Instant>,
    completed: usize,
}

impl EarlyNotification {
    pub(super) const NONE: Self = Self {
        start: None,
        completed: 0,
    };

    /// A batch of this size goes to the engine. With `more` in the ring, the driver has no time to fall asleep.
    pub(super) fn begin(batch: usize, more: bool) -> Self {
        Self {
            start: (batch > WORTH_A_NOTIFICATION && !more).then(Instant::now),
            completed: 0,
        }
    }

    /// Counts completions. Returns true if the driver should be notified of them now.
    pub(super) fn is_due(&mut self, completions: usize, more: bool) -> bool {
        self.completed += completions;
        let due = more
            && self.completed >= WORTH_A_NOTIFICATION
            && self.start.is_some_and(|start| start.elapsed() > LONG_VISIT);
        if due {
            self.start = None;
        }
        due
    }
}
