//! The policy of adaptive polling: how long to poll before blocking. No clock, no fds.
//!
//! A context has two windows: one for waits while something that it has begun is not over, one for waits for something
//! new. The disk may take longer than any window while the driver answers within one, or the other way round.
//!
//! The window grows as QEMU's does, but it closes later, and opens by itself for a try. A thread that blocks waits
//! until its event comes *and* until it has been woken up, so that for one that could just have caught the event by
//! polling, a wait that ends with a wakeup always looks too long: once closed, the window would stay so.

use std::cell::Cell;
use std::time::Duration;

/// The first window after polling has paid off once.
const START: Duration = Duration::from_micros(4);
const GROW: u32 = 2;

/// So many events more have to be missed than caught before the window closes.
const CREDIT: u8 = 4;

/// A closed window is opened for one try after so many waits, and after twice as many each time that was in vain. With
/// the try itself that makes odd intervals, lest in a regular sequence of waits always the same one is tried.
const FIRST_TRY: u16 = 4;
const LAST_TRY: u16 = 256;

/// The current polling window, adapted by how long waits last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PollWindow {
    current: Duration,
    max: Duration,
    /// While open: misses that it stands.
    credit: u8,
    /// While closed: waits up to the next try.
    left: u16,
    /// Waits from the next closing to the first try.
    pause: u16,
}

impl PollWindow {
    /// What `poll-max-ns` is by default.
    pub(crate) const DEFAULT_MAX: Duration = Duration::from_nanos(32768);

    /// A window that may grow up to `max`; zero turns polling off.
    pub(crate) fn new(max: Duration) -> Self {
        Self {
            current: Duration::ZERO,
            max,
            credit: 0,
            left: FIRST_TRY,
            pause: 2 * FIRST_TRY,
        }
    }

    /// A window that is as wide as it may get.
    pub(crate) fn open(max: Duration) -> Self {
        Self {
            current: max,
            credit: CREDIT,
            ..Self::new(max)
        }
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
    pub(crate) fn adapt(&mut self, waited: Duration) {
        if waited <= self.current {
            self.caught();
        } else if waited <= self.max {
            self.current = (self.current * GROW).max(START).min(self.max);
            (self.credit, self.pause) = (CREDIT, FIRST_TRY);
        } else if !self.current.is_zero() {
            self.missed();
        } else if !self.max.is_zero() {
            self.stayed_closed();
        }
    }

    /// The event came while the thread polled.
    pub(crate) fn caught(&mut self) {
        if self.current.is_zero() {
            return;
        }
        self.credit = (self.credit + 1).min(CREDIT);
        self.pause = FIRST_TRY;
    }

    /// The event came later than even the widest window would have seen.
    fn missed(&mut self) {
        self.credit = self.credit.saturating_sub(1);
        if self.credit == 0 {
            self.current = Duration::ZERO;
            self.left = self.pause;
            self.pause = (2 * self.pause).min(LAST_TRY);
        }
    }

    fn stayed_closed(&mut self) {
        self.left -= 1;
        if self.left == 0 {
            // Without credit: one miss is enough.
            self.current = self.max;
        }
    }
}

/// The two windows of a context.
#[derive(Debug)]
pub(super) struct PollWindows {
    fresh: WindowCell,
    busy: WindowCell,
}

/// A window that learns while it is shared.
#[derive(Debug)]
pub(super) struct WindowCell(Cell<PollWindow>);

impl PollWindows {
    /// Windows that may grow up to `max`.
    pub(super) fn new(max: Duration) -> Self {
        let window = || WindowCell(Cell::new(PollWindow::new(max)));
        Self {
            fresh: window(),
            busy: window(),
        }
    }

    /// The window for a wait that begins now.
    pub(super) fn of(&self, busy: bool) -> &WindowCell {
        if busy { &self.busy } else { &self.fresh }
    }

    /// Begins anew.
    pub(super) fn reset(&self, max: Duration) {
        for WindowCell(window) in [&self.fresh, &self.busy] {
            window.set(PollWindow::new(max));
        }
    }

    /// What they may grow to.
    pub(super) fn max(&self) -> Duration {
        self.fresh.0.get().max()
    }
}

impl WindowCell {
    /// How long to poll before the next block.
    pub(super) fn current(&self) -> Duration {
        self.0.get().current()
    }

    pub(super) fn learn(&self, how: impl FnOnce(&mut PollWindow)) {
        let mut window = self.0.get();
        how(&mut window);
        self.0.set(window);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_of_one_kind_teach_nothing_about_the_other() {
        let windows = PollWindows::new(us(32));
        for _ in 0..100 {
            windows.of(true).learn(|window| window.adapt(us(20)));
            windows.of(false).learn(|window| window.adapt(us(500)));
        }
        assert_eq!(windows.of(true).current(), us(32));
        assert!(tries_rarely(windows.of(false)));
    }

    /// Of the next waits, all too long, few are polled for.
    fn tries_rarely(window: &WindowCell) -> bool {
        let open = |_: &u16| {
            let open = !window.current().is_zero();
            window.learn(|window| window.adapt(us(500)));
            open
        };
        (0..1000).filter(open).count() < 20
    }

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
    fn a_wait_beyond_the_maximum_now_and_then_leaves_the_window_open() {
        let mixed = [us(20), us(33), us(1)].repeat(100);
        assert_eq!(after(us(32), &mixed), us(32));
    }

    #[test]
    fn several_waits_beyond_the_maximum_close_the_window() {
        let misses = |n| [[us(20)].repeat(4), [us(33)].repeat(n)].concat();
        assert_eq!(after(us(32), &misses(usize::from(CREDIT) - 1)), us(32));
        assert_eq!(after(us(32), &misses(usize::from(CREDIT))), Duration::ZERO);
    }

    /// Of so many waits, those before which the window was open, while all take longer than it can be.
    fn tries(window: &mut PollWindow, waits: u16) -> Vec<u16> {
        let open = |wait: &u16| {
            let open = !window.current().is_zero();
            assert!(
                !open || window.current() == window.max(),
                "wait {wait}: a try is a full one"
            );
            window.adapt(us(50));
            open
        };
        (0..waits).filter(open).collect()
    }

    #[test]
    fn a_closed_window_is_tried_ever_more_rarely() {
        let mut window = PollWindow::new(us(32));
        assert_eq!(tries(&mut window, 4 + 1 + 8 + 1 + 16 + 1), [4, 13, 30]);
        let rarely = tries(&mut window, 10_000).len();
        assert!((38..50).contains(&rarely), "{rarely}");
    }

    #[test]
    fn a_try_that_sees_the_event_opens_the_window() {
        let mut window = PollWindow::new(us(32));
        tries(&mut window, 1000);
        while window.current().is_zero() {
            window.adapt(us(50));
        }
        window.adapt(us(10));
        assert_eq!(window.current(), us(32));
        // And when it closes again, the next try comes soon.
        window.adapt(us(50));
        assert_eq!(tries(&mut window, 5), [4]);
    }

    #[test]
    fn sooner_or_later_every_place_of_a_regular_sequence_is_tried() {
        for period in [2, 3, 4, 6] {
            let mut window = PollWindow::new(us(32));
            let tried: std::collections::BTreeSet<_> = tries(&mut window, 30_000)
                .iter()
                .map(|wait| wait % period)
                .collect();
            assert_eq!(tried.len(), usize::from(period), "{period}: {tried:?}");
        }
    }

    #[test]
    fn a_maximum_of_zero_turns_polling_off() {
        assert_eq!(
            after(Duration::ZERO, &[us(1), Duration::ZERO, us(100)]),
            Duration::ZERO
        );
    }
}
