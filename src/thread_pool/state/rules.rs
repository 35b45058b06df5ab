//! The rules for the number of workers: when to wake one, and when to ask for another thread.

use super::State;
use crate::thread_pool::steps::{Actions, Watch};

/// The slowness at which jobs count as blocking.
const SLOW: u8 = 4;

impl<W> State<W> {
    /// Makes sure that the queued jobs are taken: wakes a sleeping worker, or else asks for a new one.
    pub(super) fn serve_queue(&mut self) -> Actions {
        let mut actions = Actions::default();
        if !self.has_next() {
            if self.shares.is_limited() {
                self.watch(Watch::Stall, &mut actions);
            }
            return actions;
        }
        if self.idle > 0 {
            self.wake(1, &mut actions);
        } else if self.may_ask() {
            if self.live() == 0 || self.is_worth_asking() {
                self.ask(&mut actions);
            } else {
                self.watch(Watch::Stall, &mut actions);
            }
        }
        // There is no worker, and threads cannot be created for now.
        actions.inline = self.cur == 0;
        actions
    }

    /// Records that the calling worker ends. If it was woken for a job, another worker is woken instead.
    pub(super) fn exit(&mut self) -> Actions {
        self.cur -= 1;
        self.serve_queue()
    }

    pub(super) fn wake(&mut self, count: usize, actions: &mut Actions) {
        self.idle -= count;
        self.tokens += count;
        self.wakeups += count as u64;
        actions.wake += count;
    }

    /// Returns the number of workers that have started.
    pub(super) fn live(&self) -> usize {
        self.cur - self.new - self.pending
    }

    /// Returns whether a thread may be requested: the limit allows one, none is on the way, none has just failed.
    pub(super) fn may_ask(&self) -> bool {
        let none_on_the_way = self.new == 0 && self.pending == 0;
        none_on_the_way && self.watch != Some(Watch::Retry) && !self.stopping && self.has_room()
    }

    /// Returns whether the limit allows another worker. Beyond `max_threads` there is one only for a share without any.
    pub(super) fn has_room(&self) -> bool {
        self.cur < self.params.max_threads || (self.cur < self.most_workers() && self.shares.is_starved())
    }

    /// Returns the highest number of workers.
    pub(super) fn most_workers(&self) -> usize {
        self.params.max_threads + self.shares.extra_workers()
    }

    /// Returns whether a worker may take a queued job.
    pub(super) fn has_next(&self) -> bool {
        match self.stopping {
            true => self.shares.queued() > 0,
            false => self.shares.has_next(self.params.max_threads),
        }
    }

    /// Returns whether one more worker would help: the others block, or have done little since the last request.
    pub(super) fn is_worth_asking(&self) -> bool {
        self.is_slow() || self.advanced_little_since(self.taken_at_ask)
    }

    pub(super) fn is_slow(&self) -> bool {
        self.slowness >= SLOW
    }

    pub(super) fn advanced_little_since(&self, taken: u64) -> bool {
        self.taken.saturating_sub(taken) < 2 * self.cur as u64
    }

    pub(super) fn ask(&mut self, actions: &mut Actions) {
        self.cur += 1;
        self.new += 1;
        self.taken_at_ask = self.taken;
        actions.spawn = true;
    }

    pub(super) fn ask_for_minimum(&mut self, actions: &mut Actions) {
        if self.watch == Some(Watch::Retry) || self.stopping {
            return;
        }
        while self.cur < self.params.min_threads {
            self.ask(actions);
        }
    }

    pub(super) fn watch(&mut self, watch: Watch, actions: &mut Actions) {
        if self.watch.is_none() || watch == Watch::Retry {
            self.watch = Some(watch);
            self.taken_at_tick = self.taken;
            actions.watch = Some(watch);
        }
    }
}
