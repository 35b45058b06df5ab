//! Busy polling, with regard to the other threads on the CPU.

use std::cell::Cell;
use std::rc::Rc;
use std::thread;

use super::clock::{LoopClock, Nanos};
use super::crowding::{Crowding, Way};
use crate::sys::process::thread_usage;

/// The record of a context about the other threads on its CPU. Clones share it. The context's thread only.
#[derive(Clone, Debug)]
pub(crate) struct Crowd {
    crowding: Rc<Cell<Crowding>>,
    /// Other threads on the CPU do not count.
    is_blind: Rc<Cell<bool>>,
    clock: Rc<LoopClock>,
}

impl Crowd {
    pub(super) fn new(clock: &Rc<LoopClock>) -> Self {
        Self {
            crowding: Rc::default(),
            is_blind: Rc::default(),
            clock: Rc::clone(clock),
        }
    }

    /// Looks as [`busy_wait`] does, until the time `end`. Samples the use of the CPU now and then.
    ///
    /// A nested wait may learn something too, but less. It is forgotten.
    pub(super) fn busy_wait(&self, (start, end): (Nanos, Nanos), look: impl FnMut() -> bool) -> bool {
        let mut crowding = self.crowding.get();
        if crowding.wants_sample(start) {
            crowding.sample(start, thread_usage());
        }
        let found = busy_wait(&mut crowding, || self.clock.read(), (start, end), look);
        if !self.is_blind.get() {
            self.crowding.set(crowding);
        }
        found
    }

    /// Polls from now on as if no other thread wanted the CPU.
    pub(super) fn look_away(&self) {
        self.is_blind.set(true);
        self.crowding.take();
    }

    /// The context has slept since this time.
    pub(super) fn slept(&self, since: Nanos) {
        let mut crowding = self.crowding.get();
        crowding.slept(self.clock.last() - since);
        self.crowding.set(crowding);
    }

    /// A thread of this process has run on another CPU, just now, while the context ran on its own.
    pub(crate) fn has_room(&self) {
        let mut crowding = self.crowding.get();
        crowding.has_room(self.clock.last());
        self.crowding.set(crowding);
    }

    /// Returns whether the thread that the context waits for has run on the same CPU for long.
    pub(crate) fn is_shared(&self) -> bool {
        self.crowding.get().is_settled(self.clock.last())
    }

    /// Returns whether other threads take so much of the CPU that the context does not poll.
    pub(crate) fn is_dense(&self) -> bool {
        self.crowding.get().way(self.clock.last()) == Way::Off
    }
}

/// Looks until `look` finds something or the time `end` has come. Returns whether it found something. `clock` reads the
/// time, and the caller has read it at `start`, just now.
///
/// Must not be called while `Way::Off` applies.
pub(crate) fn busy_wait(
    crowding: &mut Crowding,
    clock: impl Fn() -> Nanos,
    (start, end): (Nanos, Nanos),
    mut look: impl FnMut() -> bool,
) -> bool {
    let mut yields = crowding.way(start) == Way::Yield;
    loop {
        if look() {
            return true;
        }
        let now = clock();
        let last = now >= end;
        // The last time, this costs little in comparison with the sleep that follows, and shows whether the CPU is
        // shared with the thread that this one waits for.
        if yields || last && crowding.may_yield(now) {
            thread::yield_now();
            let back = clock();
            let found = look();
            crowding.yielded(back, back - now, found);
            if found || last || Crowding::has_switched(back - now) {
                return found;
            }
            yields = false;
        } else if last {
            return false;
        }
        std::hint::spin_loop();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::aio::counting::Counting;
    use crate::aio::{AioContext, Poller};

    const US: Nanos = 1_000;
    const MS: Nanos = 1_000_000;

    /// Waits for up to 10 us. Each look takes 1 us, and only look number `found` finds something. A yield, which is
    /// between two readings of the clock without a look, takes `yields`. Returns whether something was found and how
    /// often the wait looked.
    fn wait(crowding: &mut Crowding, found: u32, yields: Nanos) -> (bool, u32) {
        let (time, looks, read) = (Cell::new(0), Cell::new(0), Cell::new(true));
        let clock = || {
            if read.replace(true) {
                time.set(time.get() + yields);
            }
            time.get()
        };
        let look = || {
            read.set(false);
            time.set(time.get() + US);
            looks.set(looks.get() + 1);
            looks.get() == found
        };
        let result = busy_wait(crowding, clock, (0, 10 * US), look);
        (result, looks.get())
    }

    #[test]
    fn a_look_that_finds_something_ends_the_wait() {
        assert_eq!(wait(&mut Crowding::default(), 4, 0), (true, 4));
    }

    #[test]
    fn a_vain_wait_yields_and_looks_once_more() {
        let mut crowding = Crowding::default();
        assert_eq!(wait(&mut crowding, 0, US / 4), (false, 11));
        assert_eq!(crowding.way(0), Way::Spin);
        for _ in 0..4 {
            assert_eq!(crowding.way(0), Way::Spin);
            assert_eq!(wait(&mut crowding, 11, 5 * US), (true, 11));
        }
        assert_eq!(crowding.way(0), Way::Yield);
    }

    #[test]
    fn a_wait_for_a_thread_on_the_same_cpu_yields_first() {
        let mut crowding = Crowding::default();
        for _ in 0..4 {
            wait(&mut crowding, 11, 5 * US);
        }
        for _ in 0..4 {
            assert_eq!(wait(&mut crowding, 2, 5 * US), (true, 2));
        }
        assert_eq!(
            wait(&mut crowding, 0, 5 * US),
            (false, 2),
            "another thread has run"
        );
        assert_eq!(wait(&mut crowding, 5, US / 4), (true, 5), "nobody else has run");
    }

    #[test]
    fn a_wait_yields_nothing_while_another_cpu_is_free() {
        let mut crowding = Crowding::default();
        crowding.has_room(0);
        assert_eq!(
            wait(&mut crowding, 11, 5 * US),
            (false, 10),
            "not the look after a yield"
        );
        assert_eq!(crowding.way(0), Way::Spin);
    }

    #[test]
    fn late_yields_end_polling() {
        let mut crowding = Crowding::default();
        assert_eq!(wait(&mut crowding, 0, 3 * MS), (false, 11));
        assert_eq!(wait(&mut crowding, 0, 3 * MS), (false, 11));
        assert_eq!(crowding.way(3 * MS), Way::Off);
    }

    /// Returns the number of waits, of ten, in which the context polls.
    fn polls_in_ten_waits(ctx: &AioContext) -> u64 {
        let timer = ctx.timer(|| {});
        let before = ctx.inner.shared.figures.polls.get();
        for _ in 0..10 {
            timer.arm_in(Duration::from_millis(1));
            ctx.poll(true);
        }
        ctx.inner.shared.figures.polls.get() - before
    }

    fn polling_context() -> AioContext {
        let ctx = AioContext::new().expect("make a context");
        ctx.poll_on_crowded_cpus();
        ctx.set_poll_max(Duration::from_secs(10));
        ctx
    }

    /// Here a look that takes longer than the window stands for a poll that another thread, or a hypervisor, has interrupted.
    #[test]
    fn an_interrupted_poll_has_caught_new_work_but_not_a_slow_disk() {
        let ctx = polling_context();
        ctx.set_poll_max(Duration::from_millis(20));
        let poller = Rc::<Counting>::default();
        let _handle = ctx.add_poller(Rc::clone(&poller) as _);
        let polls_if_interrupted = || {
            let opens = (0..100).any(|_| polls_in_ten_waits(&ctx) == 10);
            assert!(opens, "waits for the timer are short");
            poller.takes.set(Duration::from_millis(30));
            poller.finds.set(true);
            let polls = polls_in_ten_waits(&ctx);
            poller.takes.take();
            poller.finds.take();
            polls
        };
        assert_eq!(polls_if_interrupted(), 10);
        ctx.in_progress().begin();
        assert!(polls_if_interrupted() < 10);
        ctx.in_progress().end();
    }

    #[test]
    fn a_poller_that_waits_for_others_is_not_polled() {
        let ctx = polling_context();
        let pollers = [(); 2].map(|()| Counting::beside(ctx.remote_work()));
        let _handles = pollers
            .each_ref()
            .map(|poller| ctx.add_poller(Rc::clone(poller) as _));
        // The first wait opens the window.
        assert!(polls_in_ten_waits(&ctx) > 0);
        pollers.iter().for_each(|poller| poller.wait_for_others(true));
        pollers[1].wait_for_others(true);
        assert_eq!(polls_in_ten_waits(&ctx), 0);
        pollers.iter().for_each(|poller| poller.wait_for_others(false));
        assert!(polls_in_ten_waits(&ctx) > 0);
    }

    #[test]
    fn beside_others_a_poller_has_to_find_work() {
        let ctx = polling_context();
        ctx.set_poll_max(Duration::from_micros(10));
        let (remote, local) = (Counting::beside(ctx.remote_work()), Rc::<Counting>::default());
        let pollers: [Rc<dyn Poller>; 2] = [Rc::clone(&remote) as _, Rc::clone(&local) as _];
        let _handles = pollers.map(|poller| ctx.add_poller(poller));
        remote.wait_for_others(true);
        assert!(polls_in_ten_waits(&ctx) < 5, "only trials");
        local.finds.set(true);
        // On a busy machine, waits may take so long that the pollers count as idle.
        let all = (0..100).any(|_| polls_in_ten_waits(&ctx) == 10);
        assert!(all, "what finds work is polled for");
        assert_eq!(remote.polls.get(), 0);
        local.finds.set(false);
        polls_in_ten_waits(&ctx);
        assert!(polls_in_ten_waits(&ctx) < 5);
    }

    #[test]
    fn polling_ends_for_a_poller_that_begins_to_wait() {
        let ctx = polling_context();
        let (remote, local) = (Counting::beside(ctx.remote_work()), Rc::<Counting>::default());
        let pollers: [Rc<dyn Poller>; 2] = [Rc::clone(&remote) as _, Rc::clone(&local) as _];
        let _handles = pollers.map(|poller| ctx.add_poller(poller));
        local.finds.set(true);
        polls_in_ten_waits(&ctx);
        assert_eq!((remote.begun.get(), remote.ended.get()), (1, 0));
        remote.wait_for_others(true);
        polls_in_ten_waits(&ctx);
        polls_in_ten_waits(&ctx);
        assert_eq!((remote.begun.get(), remote.ended.get()), (1, 1), "it is notified");
    }

    /// A driver that is polled does not notify.
    #[test]
    fn work_from_before_the_end_of_polling_is_not_lost() {
        let ctx = polling_context();
        let remote = Counting::beside(ctx.remote_work());
        let _handle = ctx.add_poller(Rc::clone(&remote) as _);
        remote.finds.set(true);
        polls_in_ten_waits(&ctx);
        let polls = remote.polls.get();
        remote.wait_for_others(true);
        remote.left.set(true);
        polls_in_ten_waits(&ctx);
        assert_eq!((remote.ended.get(), remote.polls.get() - polls), (1, 1));
    }

    #[test]
    fn a_context_on_a_crowded_cpu_blocks_at_once() {
        let ctx = AioContext::new().unwrap();
        ctx.set_poll_max(Duration::from_secs(10));
        let _poller = ctx.add_poller(Rc::<Counting>::default());
        // The first wait opens the window.
        assert!(polls_in_ten_waits(&ctx) > 0);
        let mut crowding = Crowding::default();
        for _ in 0..2 {
            crowding.yielded(ctx.inner.clock.read() + 3600 * 1000 * MS, 3 * MS, false);
        }
        ctx.inner.crowd.crowding.set(crowding);
        assert_eq!(polls_in_ten_waits(&ctx), 0);
        assert!(ctx.inner.crowd.is_dense());
    }
}
