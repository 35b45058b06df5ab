//! The pool's decisions as a pure state machine: no threads, no clock, no lock.
//!
//! Whoever drives it holds the pool's lock during a call and carries out the returned [`Actions`] after letting go.
//!
//! Invariants, at any time outside a call:
//! - `idle` workers sleep and nobody has woken them: a worker is taken off `idle` when it is woken, not when it runs.
//! - While work is queued, somebody is on the way: a worker that runs work, a wakeup not consumed yet, a thread asked
//!   for or created, or (with no worker at all) `Actions::inline` was returned.

use std::{collections::VecDeque, time::Duration};

use super::figures::{Counters, ThreadPoolParams};

#[cfg(all(test, not(loom)))]
mod model;

/// Workers take so many works at once while these are quick.
pub(super) const BATCH: usize = 8;

/// The worker of a serial pool takes so many: what it leaves would wait for it all the same.
pub(super) const SERIAL_BATCH: usize = 16;

/// A work that took less is quick: it did not block.
pub(super) const QUICK: Duration = Duration::from_micros(5);

/// After a work that blocked, so many quick rounds of workers pass until several works are taken at once again. With
/// one miss of the page cache in a while, no work then waits behind a miss.
const CAUTION: u8 = 64;

/// `State::slowness` from which on works count as blocking, and its end.
const SLOW: u8 = 4;
const SLOWEST: u8 = 8;

/// A queued work.
#[derive(Debug)]
pub(super) struct Queued<W> {
    pub(super) id: u64,
    pub(super) work: W,
}

/// What to do after letting go of the lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub(super) struct Actions {
    /// Wake so many sleeping workers.
    pub(super) wake: usize,
    /// Create a thread from a bottom half of the context (which asks `begin_spawn`).
    pub(super) spawn: bool,
    /// Call `tick` after a while.
    pub(super) watch: Option<Watch>,
    /// No worker exists and none can be created: run queued works in the context's thread.
    pub(super) inline: bool,
}

/// Why `tick` is to be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watch {
    /// Work is queued; perhaps all workers block. Or the worker of a serial pool does, and has not told of what it
    /// finished before.
    Stall,
    /// A thread could not be created.
    Retry,
}

/// What a worker does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Run what was put into its batch.
    Run,
    /// Wait for a wakeup or for the idle time to pass, then ask `woken`.
    Sleep,
    /// End.
    Exit,
}

/// What a worker does after a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    /// Ask for work.
    Look,
    /// Nobody meant it: wait on.
    SleepOn,
    /// End.
    Exit,
}

#[derive(Debug)]
pub(super) struct State<W> {
    params: ThreadPoolParams,
    /// There is never more than one worker, and it need not tell at once of what it finished.
    serial: bool,
    queue: VecDeque<Queued<W>>,
    next_id: u64,
    cur: usize,
    idle: usize,
    new: usize,
    pending: usize,
    active: usize,
    /// Wakeups that no worker has consumed.
    tokens: usize,
    stopping: bool,
    /// Works taken by workers, ever, and as of the last thread asked for and the last tick.
    taken: u64,
    taken_at_ask: u64,
    taken_at_tick: u64,
    /// Rises with works that block, falls with quick ones.
    slowness: u8,
    /// Rounds until works may be taken several at once.
    caution: u8,
    /// A tick will come.
    watch: Option<Watch>,
    wakeups: u64,
    spawn_failures: u64,
}

impl<W> State<W> {
    pub(super) fn new(params: ThreadPoolParams) -> Self {
        Self {
            params,
            serial: false,
            queue: VecDeque::new(),
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
            caution: 0,
            watch: None,
            wakeups: 0,
            spawn_failures: 0,
        }
    }

    /// A pool of one worker, see [`ThreadPool::serial_sibling`](super::ThreadPool::serial_sibling).
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
            queued: self.queue.len(),
            active: self.active,
            wakeups: self.wakeups,
            spawn_failures: self.spawn_failures,
        }
    }

    /// Wakeups that no worker has consumed.
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    // ---- The context's side ----

    /// Queues works; returns the id of the first, the others' follow.
    pub(super) fn submit(&mut self, works: impl IntoIterator<Item = W>) -> (u64, Actions) {
        let first = self.next_id;
        for work in works {
            self.queue.push_back(Queued {
                id: self.next_id,
                work,
            });
            self.next_id += 1;
        }
        let mut actions = self.serve_queue();
        if self.serial && !self.queue.is_empty() {
            self.watch(Watch::Stall, &mut actions);
        }
        (first, actions)
    }

    /// Takes a work back that nobody has taken.
    pub(super) fn cancel(&mut self, id: u64) -> Option<W> {
        let index = self.queue.binary_search_by_key(&id, |queued| queued.id).ok()?;
        self.queue.remove(index).map(|queued| queued.work)
    }

    /// Changes the limits; missing workers are asked for, surplus ones woken to end.
    pub(super) fn set_params(&mut self, params: ThreadPoolParams) -> Actions {
        self.params = params;
        let mut actions = Actions::default();
        let uncreated = self.cur.saturating_sub(params.max_threads).min(self.new);
        self.cur -= uncreated;
        self.new -= uncreated;
        self.ask_for_minimum(&mut actions);
        self.wake(
            self.cur.saturating_sub(params.max_threads).min(self.idle),
            &mut actions,
        );
        actions
    }

    /// The time of a [`Watch`] has come.
    pub(super) fn tick(&mut self) -> Actions {
        self.watch = None;
        let mut actions = Actions::default();
        self.ask_for_minimum(&mut actions);
        if !self.queue.is_empty() && self.idle == 0 && self.may_ask() {
            if self.is_slow() || self.live() == 0 || self.advanced_little_since(self.taken_at_tick) {
                self.ask(&mut actions);
            }
            self.watch(Watch::Stall, &mut actions);
        }
        if self.serial && self.active + self.queue.len() > 0 {
            self.watch(Watch::Stall, &mut actions);
        }
        actions
    }

    /// Lets every worker end once the queue is empty; threads not created yet never will be.
    pub(super) fn stop(&mut self) -> Actions {
        let mut actions = Actions::default();
        self.stopping = true;
        self.cur -= self.new;
        self.new = 0;
        self.wake(self.idle, &mut actions);
        actions
    }

    /// Takes a queued work to run it in the context's thread, if no worker is there or to come.
    pub(super) fn take_inline(&mut self) -> Option<W> {
        if self.cur > 0 {
            return None;
        }
        self.queue.pop_front().map(|queued| queued.work)
    }

    // ---- Creating threads ----

    /// Whether to create a thread now; then `worker_started` or `spawn_failed` follows.
    ///
    /// One at a time: as long as a created thread does not run, there is no next one.
    pub(super) fn begin_spawn(&mut self) -> bool {
        let begin = self.new > 0 && self.pending == 0;
        if begin {
            self.new -= 1;
            self.pending += 1;
        }
        begin
    }

    /// The thread could not be created; nor will be the others that were asked for. If the context asked for it,
    /// `take_inline` follows.
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

    /// A created thread runs. The next one is then begun by it, if `begin_spawn` says so.
    pub(super) fn worker_started(&mut self) {
        self.pending -= 1;
        let others_needed = self.queue.len() > 1 && self.idle == 0;
        if others_needed && self.new == 0 && self.may_ask() && self.is_worth_asking() {
            self.ask(&mut Actions::default());
        }
    }

    // ---- A worker's side ----

    /// Says what the calling worker does next, and puts works to run into `batch`, which is empty.
    ///
    /// It takes several at once only if its last ones were `quick` and so were those of others for a while: none
    /// should wait behind one that blocks.
    pub(super) fn next(&mut self, quick: bool, batch: &mut VecDeque<Queued<W>>) -> (Next, Actions) {
        if self.cur > self.params.max_threads || (self.queue.is_empty() && self.stopping) {
            return (Next::Exit, self.exit());
        }
        if self.queue.is_empty() {
            self.idle += 1;
            return (Next::Sleep, Actions::default());
        }
        let count = if self.serial {
            SERIAL_BATCH.min(self.queue.len())
        } else if quick && self.caution == 0 {
            BATCH.min(self.queue.len())
        } else {
            1
        };
        batch.extend(self.queue.drain(..count));
        self.active += count;
        self.taken += count as u64;
        (Next::Run, self.serve_queue())
    }

    /// The calling worker has finished `count` works, all of which were `quick` or the last of which was not.
    pub(super) fn finished(&mut self, count: usize, quick: bool) {
        self.active -= count;
        if quick {
            self.slowness = self.slowness.saturating_sub(1);
            self.caution = self.caution.saturating_sub(1);
        } else {
            self.slowness = (self.slowness + 1).min(SLOWEST);
            self.caution = CAUTION;
        }
    }

    /// The calling worker gives back what it took and has not begun, since it turned out to be slow.
    pub(super) fn give_back(&mut self, batch: &mut VecDeque<Queued<W>>) {
        self.active -= batch.len();
        self.taken -= batch.len() as u64;
        while let Some(queued) = batch.pop_back() {
            // Other workers may have given back before; the queue stays in the order of submission.
            let place = self.queue.partition_point(|other| other.id < queued.id);
            self.queue.insert(place, queued);
        }
    }

    /// The calling worker's wait has ended, by a wakeup, for no reason, or because the idle time has `expired`.
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

    // ---- Rules ----

    /// Sees to it that somebody takes what is queued: one sleeping worker, or else a new one.
    fn serve_queue(&mut self) -> Actions {
        let mut actions = Actions::default();
        if self.queue.is_empty() {
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
        // Threads cannot be created at the moment, and there are none.
        actions.inline = self.cur == 0;
        actions
    }

    /// The calling worker ends; if it was woken for a work, somebody else is woken instead.
    fn exit(&mut self) -> Actions {
        self.cur -= 1;
        self.serve_queue()
    }

    fn wake(&mut self, count: usize, actions: &mut Actions) {
        self.idle -= count;
        self.tokens += count;
        self.wakeups += count as u64;
        actions.wake += count;
    }

    /// Workers that run.
    fn live(&self) -> usize {
        self.cur - self.new - self.pending
    }

    /// Whether a thread may be asked for: below the limit, none on the way, none has just failed.
    fn may_ask(&self) -> bool {
        let none_on_the_way = self.new == 0 && self.pending == 0;
        self.cur < self.params.max_threads
            && none_on_the_way
            && self.watch != Some(Watch::Retry)
            && !self.stopping
    }

    /// Whether one more worker would help: the others block, or did little since the last one was asked for.
    fn is_worth_asking(&self) -> bool {
        self.is_slow() || self.advanced_little_since(self.taken_at_ask)
    }

    fn is_slow(&self) -> bool {
        self.slowness >= SLOW
    }

    fn advanced_little_since(&self, taken: u64) -> bool {
        self.taken.saturating_sub(taken) < 2 * self.cur as u64
    }

    fn ask(&mut self, actions: &mut Actions) {
        self.cur += 1;
        self.new += 1;
        self.taken_at_ask = self.taken;
        actions.spawn = true;
    }

    fn ask_for_minimum(&mut self, actions: &mut Actions) {
        if self.watch == Some(Watch::Retry) || self.stopping {
            return;
        }
        while self.cur < self.params.min_threads {
            self.ask(actions);
        }
    }

    fn watch(&mut self, watch: Watch, actions: &mut Actions) {
        if self.watch.is_none() || watch == Watch::Retry {
            self.watch = Some(watch);
            self.taken_at_tick = self.taken;
            actions.watch = Some(watch);
        }
    }
}
