//! The policy of adaptive polling: how long to poll before blocking. This module uses no clock and no fds.
//!
//! A context has two windows: one for waits while requests are in progress, one for waits for new requests. The disk
//! may take longer than any window while the driver answers within one, or the other way round. A third one is for waits
//! while other processes have to answer: it opens only by trials, and stays open only if these find work.
//!
//! The window grows as QEMU's does, but it closes later, and a closed window opens by itself for a trial. The trial is
//! needed because a blocked thread's wait includes the wakeup itself. The wait looks too long even if polling would
//! just have caught the event, so a closed window would never open again.

use std::cell::Cell;
use std::time::Duration;

/// The width of the window after the first wait that polling would have caught.
const START: Duration = Duration::from_micros(4);
const GROW: u32 = 2;

/// The window closes when it has missed this many more events than it caught.
const CREDIT: u8 = 4;

/// A closed window opens for one trial after this many waits, and after twice as many each time the trial fails.
/// Counting the trial, the intervals are odd, so that trials do not always meet the same wait of a regular sequence.
const FIRST_TRY: u16 = 4;
const LAST_TRY: u16 = 256;

/// The current polling window, adapted by how long waits last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PollWindow {
    current: Duration,
    max: Duration,
    /// While open: misses left before the window closes.
    credit: u8,
    /// While closed: waits left before the next trial.
    left: u16,
    /// Waits between the next closing and the first trial.
    pause: u16,
}

impl PollWindow {
    /// The default of `poll-max-ns`.
    pub(crate) const DEFAULT_MAX: Duration = Duration::from_nanos(32768);

    /// Makes a closed window that may grow up to `max`; zero turns polling off.
    pub(crate) fn new(max: Duration) -> Self {
        Self {
            current: Duration::ZERO,
            max,
            credit: 0,
            left: FIRST_TRY,
            pause: 2 * FIRST_TRY,
        }
    }

    /// Makes a window that is open to its maximum.
    pub(crate) fn open(max: Duration) -> Self {
        Self {
            current: max,
            credit: CREDIT,
            ..Self::new(max)
        }
    }

    /// Returns how long to poll before blocking.
    pub(crate) fn current(&self) -> Duration {
        self.current
    }

    /// Returns the maximum width of the window.
    pub(crate) fn max(&self) -> Duration {
        self.max
    }

    /// Learns from a wait of `waited`, counted from the start of polling (or of blocking, if the window is closed).
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

    /// Records that polling caught the event.
    pub(crate) fn caught(&mut self) {
        if self.current.is_zero() {
            return;
        }
        self.credit = (self.credit + 1).min(CREDIT);
        self.pause = FIRST_TRY;
    }

    /// Records that the event came too late for even the widest window.
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
            // The trial has no credit: a single miss closes the window again.
            self.current = self.max;
        }
    }
}

/// The windows of a context.
#[derive(Debug)]
pub(super) struct PollWindows {
    fresh: WindowCell,
    busy: WindowCell,
    beside: WindowCell,
    /// The thread has slept while requests were in progress, since polling has last caught a new one.
    slept_busy: Cell<bool>,
}

/// The kinds of waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// For new requests.
    Fresh,
    /// While requests are in progress.
    Busy,
    /// While another process or machine has to answer.
    Beside,
}

/// A window that is adapted through a shared reference.
#[derive(Debug)]
pub(super) struct WindowCell(Cell<PollWindow>);

impl PollWindows {
    /// Makes closed windows that may grow up to `max`.
    pub(super) fn new(max: Duration) -> Self {
        let window = || WindowCell(Cell::new(PollWindow::new(max)));
        Self {
            fresh: window(),
            busy: window(),
            beside: window(),
            slept_busy: Cell::new(false),
        }
    }

    /// Returns the window for a wait that begins now.
    pub(super) fn of(&self, wait: Wait) -> &WindowCell {
        match wait {
            Wait::Fresh => &self.fresh,
            Wait::Busy => &self.busy,
            Wait::Beside => &self.beside,
        }
    }

    /// Notes that the thread sleeps in a wait of this kind.
    pub(super) fn sleeps(&self, wait: Wait) {
        if wait == Wait::Busy {
            self.slept_busy.set(true);
        }
    }

    /// Learns from a wait that ended after `waited`, counted from the start of polling (or of blocking).
    ///
    /// If the thread sleeps in any case, for a disk that takes longer than any window, polling for new requests does not
    /// keep it awake. It saves one wakeup of two, costs more CPU time than that, and takes it from the driver and from the
    /// kernel's work for the disk. So it counts as a miss, whatever it has caught.
    pub(super) fn learn(&self, wait: Wait, waited: Duration) {
        let slept = wait == Wait::Fresh && self.slept_busy.take();
        let waited = match slept {
            true => Duration::MAX,
            false => waited,
        };
        self.of(wait).learn(|window| window.adapt(waited));
    }

    /// Forgets what was learned and sets a new maximum.
    pub(super) fn reset(&self, max: Duration) {
        for WindowCell(window) in [&self.fresh, &self.busy, &self.beside] {
            window.set(PollWindow::new(max));
        }
    }

    /// Returns the maximum width of the windows.
    pub(super) fn max(&self) -> Duration {
        self.fresh.0.get().max()
    }
}

impl WindowCell {
    /// Returns how long to poll before blocking.
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
    fn busy_and_fresh_waits_adapt_separate_windows() {
        let windows = PollWindows::new(us(32));
        for _ in 0..100 {
            windows.of(Wait::Busy).learn(|window| window.adapt(us(20)));
            windows.of(Wait::Fresh).learn(|window| window.adapt(us(500)));
        }
        assert_eq!(windows.of(Wait::Busy).current(), us(32));
        assert!(tries_rarely(windows.of(Wait::Fresh)));
    }

    /// Makes this many requests that arrive after `fresh`, on a disk that takes longer than any window. Returns how often
    /// the context polls for them.
    fn polls_beside_a_slow_disk(windows: &PollWindows, fresh: Duration, requests: u32) -> usize {
        let polls = |_: &u32| {
            let polls = !windows.of(Wait::Fresh).current().is_zero();
            windows.learn(Wait::Fresh, fresh);
            windows.sleeps(Wait::Busy);
            windows.learn(Wait::Busy, us(65));
            polls
        };
        (0..requests).filter(polls).count()
    }

    #[test]
    fn polls_for_new_requests_must_keep_the_thread_awake() {
        let windows = PollWindows::new(us(32));
        for fresh in [us(25), us(5)] {
            for _ in 0..10 {
                windows.learn(Wait::Fresh, fresh);
            }
            assert!(windows.of(Wait::Fresh).current() >= fresh);
            polls_beside_a_slow_disk(&windows, fresh, 100);
            assert!(polls_beside_a_slow_disk(&windows, fresh, 1000) < 20);
        }
    }

    /// Returns whether only a few of the next waits, all too long, are polled for.
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
    fn events_within_reach_open_and_double_the_window() {
        assert_eq!(after(us(32), &[us(20)]), us(4));
        assert_eq!(after(us(32), &[us(20); 3]), us(16));
    }

    #[test]
    fn catching_the_event_keeps_the_window() {
        assert_eq!(after(us(32), &[us(7), us(7), us(7), us(7)]), us(8));
    }

    #[test]
    fn the_window_never_exceeds_the_maximum() {
        assert_eq!(after(us(10), &[us(10); 9]), us(10));
        assert_eq!(after(us(3), &[us(3); 9]), us(3));
    }

    #[test]
    fn an_occasional_miss_leaves_the_window_open() {
        let mixed = [us(20), us(33), us(1)].repeat(100);
        assert_eq!(after(us(32), &mixed), us(32));
    }

    #[test]
    fn repeated_misses_close_the_window() {
        let misses = |n| [[us(20)].repeat(4), [us(33)].repeat(n)].concat();
        assert_eq!(after(us(32), &misses(usize::from(CREDIT) - 1)), us(32));
        assert_eq!(after(us(32), &misses(usize::from(CREDIT))), Duration::ZERO);
    }

    /// Makes `waits` waits, all too long to be caught, and returns those before which the window was open.
    fn tries(window: &mut PollWindow, waits: u16) -> Vec<u16> {
        let open = |wait: &u16| {
            let open = !window.current().is_zero();
            assert!(
                !open || window.current() == window.max(),
                "wait {wait}: a trial opens the window to its maximum"
            );
            window.adapt(us(50));
            open
        };
        (0..waits).filter(open).collect()
    }

    #[test]
    fn failed_trials_of_a_closed_window_become_rarer() {
        let mut window = PollWindow::new(us(32));
        assert_eq!(tries(&mut window, 4 + 1 + 8 + 1 + 16 + 1), [4, 13, 30]);
        let rarely = tries(&mut window, 10_000).len();
        assert!((38..50).contains(&rarely), "{rarely}");
    }

    #[test]
    fn a_successful_trial_opens_the_window() {
        let mut window = PollWindow::new(us(32));
        tries(&mut window, 1000);
        while window.current().is_zero() {
            window.adapt(us(50));
        }
        window.adapt(us(10));
        assert_eq!(window.current(), us(32));
        // When the window closes again, the next trial comes soon.
        window.adapt(us(50));
        assert_eq!(tries(&mut window, 5), [4]);
    }

    #[test]
    fn trials_reach_every_place_of_a_regular_sequence() {
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
