//! The pool's decisions as a pure state machine: no threads, no clock, no lock.
//!
//! The caller holds the pool's lock during a call and carries out the returned [`Actions`] after releasing it.
//!
//! Invariants, at any time outside a call:
//! - `idle` workers sleep and have not been woken. A worker leaves `idle` when it is woken, not when it runs.
//! - While jobs are queued that a worker may take (see `shares`), something will take them: a worker that runs a job, a
//!   wakeup not consumed yet, a thread requested or created, or (without any worker) `Actions::inline` was returned.

use std::collections::VecDeque;

use super::figures::{Counters, PoolFigures, ThreadPoolParams};
use super::pace::Pace;
use super::shares::{Queued, ShareId, Shares};
use super::steps::{Actions, Next, Watch, Woken};

#[cfg(all(test, not(loom)))]
mod model;
mod rules;

/// The most jobs that a worker takes at once, while jobs are quick.
pub(super) const BATCH: usize = 8;

/// The most jobs that the worker of a serial pool takes at once. Jobs left in the queue would wait for it anyway.
pub(super) const SERIAL_BATCH: usize = 16;

/// Maximum of `State::slowness`.
const SLOWEST: u8 = 8;

#[derive(Debug)]
pub(super) struct State<W> {
    params: ThreadPoolParams,
    /// The pool has at most one worker, which may delay the delivery of finished jobs.
    serial: bool,
    shares: Shares<W>,
    next_id: u64,
    cur: usize,
    idle: usize,
    new: usize,
    pending: usize,
    active: usize,
    /// Wakeups that no worker has consumed.
    tokens: usize,
    stopping: bool,
    /// Jobs taken by workers so far. Then the values at the last request for a thread and when the last watch began.
    taken: u64,
    taken_at_ask: u64,
    taken_at_tick: u64,
    /// Rises with blocking jobs and falls with quick ones, between 0 and [`SLOWEST`].
    slowness: u8,
    /// The number of CPUs that workers may use: more workers of a share would not make its jobs faster while these keep
    /// CPUs busy, but they would take the CPUs from the context.
    cpus: usize,
    /// The reason for the pending `tick`, if one is pending.
    watch: Option<Watch>,
    wakeups: u64,
    spawn_failures: u64,
}

impl<W> State<W> {
    pub(super) fn new(params: ThreadPoolParams) -> Self {
        Self {
            params,
            serial: false,
            shares: Shares::new(),
            next_id: 0,
            cur: 0,
            idle: 0,
            new: 0,
            pending: 0,
            active: 0,
            tokens: 0,
            stopping: false,
            taken: 0,
            taken_at_ask: 0,
            taken_at_tick: 0,
            slowness: 0,
            cpus: usize::MAX,
            watch: None,
            wakeups: 0,
            spawn_failures: 0,
        }
    }

    /// Makes a pool of one worker. See [`ThreadPool::serial_sibling`](super::ThreadPool::serial_sibling).
    pub(super) fn serial() -> Self {
        Self {
            serial: true,
            ..Self::new(ThreadPoolParams {
                min_threads: 0,
                max_threads: 1,
            })
        }
    }

    pub(super) fn is_serial(&self) -> bool {
        self.serial
    }

    pub(super) fn counters(&self) -> Counters {
        Counters {
            cur_threads: self.cur,
            idle_threads: self.idle,
            new_threads: self.new,
            pending_threads: self.pending,
            min_threads: self.params.min_threads,
            max_threads: self.params.max_threads,
            queued: self.shares.queued(),
            active: self.active,
            wakeups: self.wakeups,
            spawn_failures: self.spawn_failures,
        }
    }

    /// Shows the counters that other threads read. The caller holds the pool's lock.
    #[inline]
    pub(super) fn show(&self, figures: &PoolFigures) {
        figures.threads.set(self.cur as u64);
        figures.idle.set(self.idle as u64);
        figures.active.set(self.active as u64);
        self.show_queued(figures);
    }

    /// As [`show`](Self::show), if nothing but the queue has changed.
    #[inline]
    pub(super) fn show_queued(&self, figures: &PoolFigures) {
        figures.queued.set(self.shares.queued() as u64);
    }

    /// Returns the number of wakeups that no worker has consumed.
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    // ---- Called by the context ----

    /// Queues jobs of a share. Returns the id of the first; the other ids follow it in order.
    pub(super) fn submit(&mut self, share: ShareId, works: impl IntoIterator<Item = W>) -> (u64, Actions) {
        let (first, next) = (self.next_id, &mut self.next_id);
        let number = |work| {
            let id = *next;
            *next += 1;
            Queued { id, work }
        };
        self.shares.queue(share, works.into_iter().map(number));
        let mut actions = self.serve_queue();
        if self.serial && self.shares.queued() > 0 {
            self.watch(Watch::Stall, &mut actions);
        }
        (first, actions)
    }

    /// Removes a job from the queue, unless a worker has taken it.
    pub(super) fn cancel(&mut self, id: u64) -> Option<W> {
        self.shares.cancel(id)
    }

    /// Adds a share.
    pub(super) fn add_share(&mut self) -> ShareId {
        self.shares.add()
    }

    /// Removes a share that has no job left. The others may then have more workers.
    pub(super) fn remove_share(&mut self, share: ShareId) -> Actions {
        self.shares.remove(share);
        let mut actions = self.serve_queue();
        self.wake(
            self.cur.saturating_sub(self.most_workers()).min(self.idle),
            &mut actions,
        );
        actions
    }

    /// Changes the limits. Missing workers are requested, and surplus workers are woken so that they end.
    pub(super) fn set_params(&mut self, params: ThreadPoolParams) -> Actions {
        self.params = params;
        let mut actions = Actions::default();
        let most = self.most_workers();
        let uncreated = self.cur.saturating_sub(most).min(self.new);
        self.cur -= uncreated;
        self.new -= uncreated;
        self.ask_for_minimum(&mut actions);
        self.wake(self.cur.saturating_sub(most).min(self.idle), &mut actions);
        actions
    }

    /// Handles an expired [`Watch`].
    pub(super) fn tick(&mut self) -> Actions {
        self.watch = None;
        let mut actions = Actions::default();
        if self.shares.is_limited() && self.taken == self.taken_at_tick {
            self.shares.widen();
            actions = self.serve_queue();
        }
        self.ask_for_minimum(&mut actions);
        if self.has_next() && self.idle == 0 && self.may_ask() {
            if self.is_slow() || self.live() == 0 || self.advanced_little_since(self.taken_at_tick) {
                self.ask(&mut actions);
            }
            self.watch(Watch::Stall, &mut actions);
        }
        if self.shares.is_limited() || (self.serial && self.active + self.shares.queued() > 0) {
            self.watch(Watch::Stall, &mut actions);
        }
        actions
    }

    /// Makes every worker end once the queue is empty. Requested threads are no longer created.
    pub(super) fn stop(&mut self) -> Actions {
        let mut actions = Actions::default();
        self.stopping = true;
        self.cur -= self.new;
        self.new = 0;
        self.wake(self.idle, &mut actions);
        actions
    }

    /// Takes some queued jobs to run them on the context's thread, if no worker exists or is being created.
    pub(super) fn take_inline(&mut self, jobs: &mut impl Extend<W>) {
        if self.cur == 0 {
            self.shares.take_some(BATCH, jobs);
        }
    }

    // ---- Creating threads ----

    /// Returns whether the caller must create a thread now. `worker_started` or `spawn_failed` must follow.
    ///
    /// Threads are created one at a time: the next one only once the last one runs.
    pub(super) fn begin_spawn(&mut self) -> bool {
        let begin = self.new > 0 && self.pending == 0;
        if begin {
            self.new -= 1;
            self.pending += 1;
        }
        begin
    }

    /// Handles a failed thread creation. The other requested threads are given up too. If the context asked for the
    /// thread, `take_inline` follows.
    pub(super) fn spawn_failed(&mut self) -> Actions {
        let mut actions = Actions::default();
        self.cur -= self.pending + self.new;
        self.pending = 0;
        self.new = 0;
        self.spawn_failures += 1;
        if !self.stopping {
            self.watch(Watch::Retry, &mut actions);
        }
        actions
    }

    /// Records that a created thread runs, which may use `cpus` CPUs. That thread creates the next one, if `begin_spawn`
    /// says so.
    pub(super) fn worker_started(&mut self, cpus: usize) {
        self.cpus = cpus;
        self.pending -= 1;
        let others_needed = self.shares.queued() > 1 && self.has_next() && self.idle == 0;
        if others_needed && self.new == 0 && self.may_ask() && self.is_worth_asking() {
            self.ask(&mut Actions::default());
        }
    }

    // ---- Called by workers ----

    /// Returns the calling worker's next step, and puts the jobs to run into `batch`, which is empty.
    ///
    /// The worker takes several jobs at once only if its last ones were `quick` and no worker's job has blocked for a
    /// while: no job should wait for one that blocks.
    pub(super) fn next(&mut self, quick: bool, batch: &mut VecDeque<Queued<W>>) -> (Next, Actions) {
        if self.cur > self.most_workers() || (self.shares.queued() == 0 && self.stopping) {
            return (Next::Exit, self.exit());
        }
        // At the end, every worker helps.
        let max = Some(self.params.max_threads).filter(|_| !self.stopping);
        let serial = self.serial;
        let took = self.shares.take(max, batch, |caution, queued| {
            if serial {
                SERIAL_BATCH.min(queued)
            } else if quick && caution == 0 {
                BATCH.min(queued)
            } else {
                1
            }
        });
        let Some(share) = took else {
            self.idle += 1;
            return (Next::Sleep, Actions::default());
        };
        self.active += batch.len();
        self.taken += batch.len() as u64;
        (Next::Run(share), self.serve_queue())
    }

    /// Records that the calling worker finished `count` jobs of a share.
    pub(super) fn finished(&mut self, share: ShareId, count: usize, pace: Pace) {
        self.active -= count;
        self.slowness = match pace {
            Pace::Quick | Pace::Busy => self.slowness.saturating_sub(1),
            Pace::Blocking => (self.slowness + 1).min(SLOWEST),
        };
        self.shares.finished(share, pace, self.cpus);
    }

    /// Records the end of a batch that the calling worker took from a share. The jobs that are left were not started,
    /// because an earlier job was slow; they go back into the queue.
    pub(super) fn end_batch(&mut self, share: ShareId, left: &mut VecDeque<Queued<W>>) {
        self.active -= left.len();
        self.taken -= left.len() as u64;
        while let Some(job) = left.pop_back() {
            self.shares.give_back(share, job);
        }
        self.shares.leave(share);
    }

    /// Handles the end of the calling worker's wait: by a wakeup, spuriously, or because the idle time `expired`.
    pub(super) fn woken(&mut self, expired: bool) -> (Woken, Actions) {
        if self.tokens > 0 {
            self.tokens -= 1;
            return (Woken::Look, Actions::default());
        }
        if !expired || self.cur <= self.params.min_threads {
            return (Woken::SleepOn, Actions::default());
        }
        self.idle -= 1;
        (Woken::Exit, self.exit())
    }
}
