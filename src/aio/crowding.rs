//! The policy of polling on a CPU that other threads want, too. This module uses no clock and makes no system calls.
//!
//! A thread that polls keeps all others from its CPU, and perhaps the very thread that it waits for. It matters how long
//! the others run:
//!
//! - Briefly, such as a driver on the same CPU, which submits a request and sleeps. Then this thread looks once, yields
//!   its CPU, and looks again: the driver has run meanwhile, and its request needed neither a kick nor a wakeup.
//! - For whole time slices. Then a yield comes back late, and the time spent polling is missing for the work, because the
//!   scheduler gives each thread only its share. So polling stops, and is tried again rarely.
//!
//! While another CPU is seen to be free, the thread that this one waits for can run there, and nothing is yielded: that
//! would only let a thread run here which had better run there.

use super::clock::Nanos;
use crate::sys::process::CpuUsage;

/// A yield that takes this long has let another thread run.
const SWITCH: Nanos = 1_500;

/// A thread that runs for this long does not sleep soon.
const LATE: Nanos = 500_000;

/// The balance of yields: one for each that brought something, minus [`VAIN`] for each that did not, from zero to [`FIRM`].
type Balance = u8;
const VAIN: Balance = 4;
const FIRM: Balance = 64;

/// The balance from which on a thread yields before it polls. A driver that the scheduler has put on this CPU for a moment
/// had better run on another one.
const SHARED: Balance = 4;

/// The balance from which on the CPU counts as shared for long.
const SETTLED: Balance = 32;

/// Minimum time between two samples.
const PERIOD: Nanos = 8_000_000;

/// Number of samples in a row that show a crowded CPU, after which polling stops. A single one may be chance.
const STRIKES: u8 = 2;

/// Two late yields or long preemptions while polling, within this time, show a crowded CPU, too. A single one may be chance.
const OVERRUNS: Nanos = 20_000_000;

/// Number of samples in a row that show no crowd, after which the next pause is a short one.
const CALM: u8 = 8;

/// The time without yields after another CPU was seen to be free.
const ROOM: Nanos = 10_000_000;

/// The shortest and the longest time without polling.
const FIRST_PAUSE: Nanos = 80_000_000;
const LAST_PAUSE: Nanos = 1_280_000_000;

/// How to poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Look again and again.
    Spin,
    /// Look, yield the CPU, and look again. If nobody else has run, go on as `Spin`.
    Yield,
    /// Do not poll.
    Off,
}

/// The record of one thread about the other threads on its CPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crowding {
    balance: Balance,
    /// The end of the time without yields.
    room_until: Nanos,
    /// The end of the pause.
    until: Nanos,
    /// The length of the next pause.
    pause: Nanos,
    strikes: u8,
    calm: u8,
    /// The last sample since polling began or was resumed.
    last: Option<(Nanos, CpuUsage)>,
    /// When this thread last lost its CPU for long while it polled.
    lost: Option<Nanos>,
    /// Time since `last` in which this thread slept.
    slept: Nanos,
}

impl Default for Crowding {
    fn default() -> Self {
        Self {
            balance: 0,
            room_until: 0,
            until: 0,
            pause: FIRST_PAUSE,
            strikes: 0,
            calm: 0,
            last: None,
            lost: None,
            slept: 0,
        }
    }
}

impl Crowding {
    /// Returns how to poll at the time `now`.
    pub(crate) fn way(&self, now: Nanos) -> Way {
        if now < self.until {
            Way::Off
        } else if self.balance >= SHARED && self.may_yield(now) {
            Way::Yield
        } else {
            Way::Spin
        }
    }

    /// Returns whether the thread that this one waits for has run on the same CPU for long, at the time `now`.
    pub(crate) fn is_settled(&self, now: Nanos) -> bool {
        self.balance >= SETTLED && self.way(now) == Way::Yield
    }

    /// Returns whether another thread may need this CPU at the time `now`.
    pub(crate) fn may_yield(&self, now: Nanos) -> bool {
        now >= self.room_until
    }

    /// At the time `now`, a thread of this process ran on another CPU while this one ran on its own.
    pub(crate) fn has_room(&mut self, now: Nanos) {
        self.room_until = now + ROOM;
    }

    /// Returns whether it is time for a sample. During a pause it never is.
    pub(crate) fn wants_sample(&self, now: Nanos) -> bool {
        now >= self.until && self.last.is_none_or(|(last, _)| now - last >= PERIOD)
    }

    /// Learns from the CPU time that this thread has used since its start.
    ///
    /// The time in which it neither ran nor slept was taken by other threads, if it was preempted. Otherwise a hypervisor
    /// took it, or an interrupt.
    pub(crate) fn sample(&mut self, now: Nanos, usage: CpuUsage) {
        let slept = std::mem::take(&mut self.slept);
        let Some((since, before)) = self.last.replace((now, usage)) else {
            return;
        };
        let (wall, ran) = (now - since, usage.cpu.saturating_sub(before.cpu));
        let lost = wall.saturating_sub(ran + slept);
        let each = lost
            .checked_div(usage.preemptions - before.preemptions)
            .unwrap_or(0);
        if each < LATE || lost < wall / 4 {
            (self.strikes, self.calm) = (0, self.calm.saturating_add(1));
            if self.calm >= CALM {
                self.pause = FIRST_PAUSE;
            }
            return;
        }
        (self.strikes, self.calm) = (self.strikes + 1, 0);
        if self.strikes >= STRIKES {
            self.stop(now);
        }
    }

    /// This thread has slept for this long.
    pub(crate) fn slept(&mut self, time: Nanos) {
        self.slept += time;
    }

    /// This thread has yielded its CPU, and was back after `took`, at `now`. `found`: then there was something to do.
    pub(crate) fn yielded(&mut self, now: Nanos, took: Nanos, found: bool) {
        if took >= LATE {
            self.lost_the_cpu(now);
        } else if took >= SWITCH && found {
            self.balance = (self.balance + 1).min(FIRM);
        } else {
            self.balance = self.balance.saturating_sub(VAIN);
        }
    }

    /// Returns whether another thread has run during a yield that took this long.
    pub(crate) fn has_switched(took: Nanos) -> bool {
        took >= SWITCH
    }

    /// This thread looked for something for `overrun` longer than it wanted to, until `now`: another thread has run. It
    /// need not be sampled then.
    pub(crate) fn overran(&mut self, now: Nanos, overrun: Nanos) {
        if overrun >= LATE {
            self.lost_the_cpu(now);
        }
    }

    fn lost_the_cpu(&mut self, now: Nanos) {
        let before = self.lost.replace(now);
        if before.is_some_and(|before| now - before < OVERRUNS) {
            self.stop(now);
        }
    }

    fn stop(&mut self, now: Nanos) {
        *self = Self {
            until: now + self.pause,
            pause: (2 * self.pause).min(LAST_PAUSE),
            ..Self::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Nanos = 1_000;
    const MS: Nanos = 1_000_000;

    /// A thread with a clock, on a CPU that the tests share out.
    #[derive(Default)]
    struct Thread {
        crowding: Crowding,
        now: Nanos,
        usage: CpuUsage,
    }

    impl Thread {
        /// Runs, sleeps and waits for its CPU for these times, and samples if it is time.
        fn period(&mut self, ran: Nanos, slept: Nanos, lost: Nanos, preemptions: u64) {
            self.now += ran + slept + lost;
            self.usage.cpu += ran;
            self.usage.preemptions += preemptions;
            self.crowding.slept(slept);
            if self.crowding.wants_sample(self.now) {
                self.crowding.sample(self.now, self.usage);
            }
        }

        fn way(&self) -> Way {
            self.crowding.way(self.now)
        }

        /// Shares its CPU with a thread that never sleeps until it stops polling. Returns the time that this took.
        fn until_off(&mut self) -> Nanos {
            let start = self.now;
            while self.way() != Way::Off {
                assert!(self.now - start < 100 * MS, "a crowd goes unnoticed");
                self.period(3 * MS, 0, 3 * MS, 1);
            }
            self.now - start
        }

        /// Waits until it polls again. Returns the time that this took.
        fn until_on(&mut self) -> Nanos {
            let start = self.now;
            while self.way() == Way::Off {
                self.period(0, MS, 0, 0);
            }
            self.now - start
        }
    }

    #[test]
    fn a_thread_alone_on_its_cpu_spins() {
        let mut thread = Thread::default();
        for _ in 0..1000 {
            thread.period(MS, 2 * MS, 20 * US, 1);
            assert_eq!(thread.way(), Way::Spin);
        }
    }

    #[test]
    fn polling_stops_on_a_crowded_cpu_and_is_tried_ever_more_rarely() {
        let mut thread = Thread::default();
        let pauses: Vec<Nanos> = (0..7)
            .map(|_| {
                assert!(thread.until_off() < 40 * MS);
                thread.until_on() / MS
            })
            .collect();
        assert_eq!(pauses, [80, 160, 320, 640, 1280, 1280, 1280]);
        // Once the crowd has gone, the next one leads to a short pause.
        for _ in 0..20 {
            thread.period(8 * MS, 0, 0, 0);
            assert_eq!(thread.way(), Way::Spin);
        }
        thread.until_off();
        assert_eq!(thread.until_on() / MS, 80);
    }

    #[test]
    fn a_single_long_preemption_is_chance() {
        let mut thread = Thread::default();
        for _ in 0..100 {
            thread.period(5 * MS, 0, 4 * MS, 1);
            thread.period(9 * MS, 0, 0, 0);
            assert_eq!(thread.way(), Way::Spin);
        }
    }

    #[test]
    fn brief_preemptions_are_no_crowd() {
        let mut thread = Thread::default();
        for _ in 0..1000 {
            // A driver on the same CPU: 5 us for each request.
            thread.period(5 * MS, 0, 5 * MS, 1000);
            assert_eq!(thread.way(), Way::Spin);
        }
    }

    #[test]
    fn sleep_is_no_preemption() {
        let mut thread = Thread::default();
        for _ in 0..100 {
            thread.period(MS, 50 * MS, 0, 0);
            assert_eq!(thread.way(), Way::Spin);
        }
    }

    /// The thread yields its CPU this many times, and the driver submits a request meanwhile.
    fn yield_to_the_driver(crowding: &mut Crowding, times: u8) {
        for _ in 0..times {
            crowding.yielded(0, 5 * US, true);
        }
    }

    /// The thread yields its CPU this many times, and nobody else wants it.
    fn yield_in_vain(crowding: &mut Crowding, times: u8) {
        for _ in 0..times {
            crowding.yielded(0, 300, false);
        }
    }

    #[test]
    fn yields_that_bring_work_are_repeated_until_they_bring_none() {
        let mut crowding = Crowding::default();
        for _ in 0..100 {
            crowding.yielded(0, 300, true);
            assert_eq!(crowding.way(0), Way::Spin, "nobody has run, so it was chance");
        }
        yield_to_the_driver(&mut crowding, SHARED - 1);
        assert_eq!(
            crowding.way(0),
            Way::Spin,
            "the driver may have come for a moment"
        );
        yield_to_the_driver(&mut crowding, 100);
        for i in 0..FIRM / VAIN {
            assert_eq!(crowding.way(0), Way::Yield, "{i}");
            yield_in_vain(&mut crowding, 1);
        }
        assert_eq!(crowding.way(0), Way::Spin);
    }

    #[test]
    fn a_driver_that_comes_and_goes_does_not_share_the_cpu() {
        let mut crowding = Crowding::default();
        for _ in 0..1000 {
            yield_to_the_driver(&mut crowding, SHARED - 1);
            yield_in_vain(&mut crowding, 1);
            assert_eq!(crowding.way(0), Way::Spin);
        }
    }

    #[test]
    fn only_a_driver_that_stays_settles_on_the_cpu() {
        let mut crowding = Crowding::default();
        yield_to_the_driver(&mut crowding, SETTLED - 1);
        assert!(crowding.way(0) == Way::Yield && !crowding.is_settled(0));
        yield_to_the_driver(&mut crowding, 1);
        assert!(crowding.is_settled(0));
        yield_in_vain(&mut crowding, 1);
        assert!(!crowding.is_settled(0));
        yield_to_the_driver(&mut crowding, 100);
        yield_in_vain(&mut crowding, 8);
        assert!(crowding.is_settled(0), "most yields have brought something");
        crowding.has_room(0);
        assert!(!crowding.is_settled(0), "another CPU is free");
    }

    #[test]
    fn nothing_is_yielded_while_another_cpu_is_free() {
        let mut crowding = Crowding::default();
        yield_to_the_driver(&mut crowding, SHARED);
        crowding.has_room(MS);
        assert!(!crowding.may_yield(10 * MS));
        assert_eq!(crowding.way(10 * MS), Way::Spin);
        assert!(crowding.may_yield(11 * MS));
        assert_eq!(crowding.way(11 * MS), Way::Yield);
    }

    #[test]
    fn polling_stops_after_two_overruns_in_a_short_time() {
        let mut crowding = Crowding::default();
        for now in [MS, 101 * MS, 201 * MS] {
            crowding.overran(now, 3 * MS);
            crowding.overran(now, 50 * US);
            assert_eq!(crowding.way(now), Way::Spin);
        }
        crowding.overran(210 * MS, 3 * MS);
        assert_eq!(crowding.way(210 * MS), Way::Off);
    }

    #[test]
    fn a_second_late_yield_stops_polling() {
        let mut crowding = Crowding::default();
        yield_to_the_driver(&mut crowding, SHARED);
        crowding.yielded(3 * MS, 3 * MS, true);
        crowding.yielded(40 * MS, 3 * MS, true);
        assert_eq!(crowding.way(40 * MS), Way::Yield, "chance");
        crowding.yielded(44 * MS, 3 * MS, true);
        assert_eq!(crowding.way(44 * MS), Way::Off);
        assert!(!crowding.wants_sample(90 * MS));
        assert_eq!(crowding.way(124 * MS), Way::Spin);
    }

    #[test]
    fn time_that_a_hypervisor_takes_is_no_crowd() {
        let mut thread = Thread::default();
        for _ in 0..100 {
            thread.period(5 * MS, 0, 5 * MS, 0);
            assert_eq!(thread.way(), Way::Spin);
        }
    }
}
