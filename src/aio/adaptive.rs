//! The policy of adaptive polling: how long to poll before blocking. No clock, no fds.

use std::time::Duration;

/// The first window after polling has paid off once.
const START: Duration = Duration::from_micros(4);
const GROW: u32 = 2;

/// The current polling window, adapted by how long waits last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PollWindow {
    current: Duration,
    max: Duration,
}

impl PollWindow {
    /// What `poll-max-ns` is by default.
    pub(crate) const DEFAULT_MAX: Duration = Duration::from_nanos(32768);

    /// A window that may grow up to `max`; zero turns polling off.
    pub(crate) fn new(max: Duration) -> Self {
        Self {
            current: Duration::ZERO,
            max,
        }
    }

    /// A window that is as wide as it may get.
    pub(crate) fn open(max: Duration) -> Self {
        Self { current: max, max }
    }

    /// How long to poll before the next block.
    pub(crate) fn current(&self) -> Duration {
        self.current
    }

    /// What it may grow to.
    pub(crate) fn max(&self) -> Duration {
        self.max
    }

    /// Learns from a wait of `waited`, counted from when polling began or would have begun.
    ///
    /// The window grows if a longer one would have seen the event, and closes if not even the longest would have.
    pub(crate) fn adapt(&mut self, waited: Duration) {
        if waited <= self.current {
        } else if waited > self.max {
            self.current = Duration::ZERO;
        } else {
            self.current = (self.current * GROW).max(START).min(self.max);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    fn after(max: Duration, waits: &[Duration]) -> Duration {
        let mut window = PollWindow::new(max);
        waits.iter().for_each(|&waited| window.adapt(waited));
        window.current()
    }

    #[test]
    fn a_new_window_is_closed() {
        assert_eq!(after(us(32), &[]), Duration::ZERO);
    }

    #[test]
    fn an_event_within_reach_opens_the_window_at_4_us_and_doubles_it() {
        assert_eq!(after(us(32), &[us(20)]), us(4));
        assert_eq!(after(us(32), &[us(20); 3]), us(16));
    }

    #[test]
    fn the_window_stays_when_it_saw_the_event() {
        assert_eq!(after(us(32), &[us(7), us(7), us(7), us(7)]), us(8));
    }

    #[test]
    fn the_window_never_exceeds_the_maximum() {
        assert_eq!(after(us(10), &[us(10); 9]), us(10));
        assert_eq!(after(us(3), &[us(3); 9]), us(3));
    }

    #[test]
    fn a_wait_beyond_the_maximum_closes_the_window() {
        assert_eq!(after(us(32), &[us(20), us(20), us(33)]), Duration::ZERO);
    }

    #[test]
    fn a_maximum_of_zero_turns_polling_off() {
        assert_eq!(
            after(Duration::ZERO, &[us(1), Duration::ZERO, us(100)]),
            Duration::ZERO
        );
    }
}
