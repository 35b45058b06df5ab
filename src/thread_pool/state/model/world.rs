//! Simulated workers and one context, which drive the state machine.

use std::collections::{BTreeSet, VecDeque};

use proptest::prelude::*;

use crate::thread_pool::figures::ThreadPoolParams;
use crate::thread_pool::pace::Pace;
use crate::thread_pool::shares::{Queued, ShareId};
use crate::thread_pool::state::{BATCH, State};
use crate::thread_pool::steps::{Actions, Next, Watch, Woken};

/// The number of shares that the simulations have, besides the first.
pub(super) const SHARES: usize = 3;

/// The number of CPUs.
pub(super) const CPUS: usize = 4;

/// A step of the simulation. Its numbers choose among the possible actions.
#[derive(Clone, Debug)]
pub(super) enum Op {
    /// Jobs of one of the shares.
    Submit(usize, usize),
    Cancel(u64),
    SetParams(usize, usize),
    /// The care bottom half runs.
    Care,
    Tick,
    /// A worker takes its next step. A running worker finishes some jobs.
    Step(prop::sample::Index, usize, Pace),
    /// A sleeping worker's idle time expires.
    Expire(prop::sample::Index),
    /// A sleeping worker wakes up spuriously.
    Spurious(prop::sample::Index),
    /// From now on, thread creation succeeds or fails.
    SetCreatable(bool),
}

pub(super) fn op() -> impl Strategy<Value = Op> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        4 => (0..SHARES, 0..20_usize).prop_map(|(share, count)| Op::Submit(share, count)),
        1 => any::<u64>().prop_map(Op::Cancel),
        1 => (0..4_usize, 1..5_usize).prop_map(|(min, more)| Op::SetParams(min, min + more - 1)),
        3 => Just(Op::Care),
        1 => Just(Op::Tick),
        16 => (index(), 1..=BATCH, pace()).prop_map(|(worker, count, pace)| Op::Step(worker, count, pace)),
        1 => index().prop_map(Op::Expire),
        1 => index().prop_map(Op::Spurious),
        1 => any::<bool>().prop_map(Op::SetCreatable),
    ]
}

fn pace() -> impl Strategy<Value = Pace> {
    prop_oneof![Just(Pace::Quick), Just(Pace::Busy), Just(Pace::Blocking)]
}

#[derive(Debug)]
pub(super) enum Worker {
    Created,
    Looking {
        quick: bool,
    },
    Running(ShareId, VecDeque<Queued<u64>>),
    /// Has released the lock, but does not wait yet.
    GoesToSleep,
    Waiting,
    Signalled,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) state: State<u64>,
    pub(super) shares: Vec<ShareId>,
    pub(super) workers: Vec<Worker>,
    pub(super) creatable: bool,
    pub(super) care: bool,
    pub(super) watch: Option<Watch>,
    /// The ids of jobs that were submitted and have not come back.
    pub(super) open: BTreeSet<u64>,
}

impl World {
    pub(super) fn new() -> Self {
        let params = ThreadPoolParams {
            min_threads: 0,
            max_threads: 3,
        };
        Self::with_state(State::new(params))
    }

    pub(super) fn with_state(state: State<u64>) -> Self {
        Self {
            state,
            shares: vec![ShareId::FIRST],
            workers: Vec::new(),
            creatable: true,
            care: false,
            watch: None,
            open: BTreeSet::new(),
        }
    }

    /// Adds shares, which `Op::Submit` then uses in place of the first one.
    pub(super) fn with_shares(mut self, count: usize) -> Self {
        self.shares = (0..count).map(|_| self.state.add_share()).collect();
        self
    }

    pub(super) fn apply(&mut self, actions: Actions) {
        for _ in 0..actions.wake {
            // A signal is lost if no worker waits.
            if let Some(worker) = self
                .workers
                .iter_mut()
                .find(|worker| matches!(worker, Worker::Waiting))
            {
                *worker = Worker::Signalled;
            }
        }
        self.care |= actions.spawn || actions.inline;
        self.watch = actions.watch.or(self.watch);
    }

    pub(super) fn run(&mut self, op: &Op) {
        match op {
            Op::Submit(share, count) => self.submit_to(self.shares[share % self.shares.len()], *count),
            Op::Cancel(id) => self.cancel(id % (self.state.next_id + 1)),
            Op::SetParams(..) if self.state.serial => {}
            Op::SetParams(min_threads, max_threads) => {
                let actions = self.state.set_params(ThreadPoolParams {
                    min_threads: *min_threads,
                    max_threads: *max_threads,
                });
                self.apply(actions);
            }
            Op::Care => self.care(),
            Op::Tick => self.tick(),
            Op::Step(worker, count, pace) => {
                if let Some(worker) = pick(&self.workers, worker, |_| true) {
                    self.step(worker, *count, *pace);
                }
            }
            Op::Expire(worker) => self.wake_up(worker, true),
            Op::Spurious(worker) => self.wake_up(worker, false),
            Op::SetCreatable(creatable) => self.creatable = *creatable,
        }
        self.check();
    }

    pub(super) fn submit(&mut self, count: usize) {
        self.submit_to(self.shares[0], count);
    }

    fn submit_to(&mut self, share: ShareId, count: usize) {
        let first = self.state.next_id;
        let ids = first..first + count as u64;
        self.open.extend(ids.clone());
        let (id, actions) = self.state.submit(share, ids);
        assert_eq!(id, first);
        self.apply(actions);
    }

    pub(super) fn cancel(&mut self, id: u64) {
        let mut shares = self.shares.iter();
        let queued = shares.any(|share| self.state.shares.jobs(*share).any(|queued| queued.id == id));
        let cancelled = self.state.cancel(id);
        assert_eq!(
            cancelled.is_some(),
            queued,
            "a job can be cancelled exactly while it is queued"
        );
        if let Some(work) = cancelled {
            self.come_back(work);
        }
    }

    pub(super) fn come_back(&mut self, work: u64) {
        assert!(self.open.remove(&work), "{work} comes back once");
    }

    pub(super) fn care(&mut self) {
        if !std::mem::take(&mut self.care) {
            return;
        }
        if self.state.begin_spawn() {
            self.create();
        }
        loop {
            let mut jobs = Vec::new();
            self.state.take_inline(&mut jobs);
            if jobs.is_empty() {
                return;
            }
            jobs.into_iter().for_each(|work| self.come_back(work));
        }
    }

    pub(super) fn create(&mut self) {
        if self.creatable {
            self.workers.push(Worker::Created);
        } else {
            let actions = self.state.spawn_failed();
            self.apply(actions);
        }
    }

    pub(super) fn tick(&mut self) {
        if self.watch.take().is_some() {
            let actions = self.state.tick();
            self.apply(actions);
        }
    }

    pub(super) fn wake_up(&mut self, worker: &prop::sample::Index, expired: bool) {
        let waiting = |worker: &Worker| matches!(worker, Worker::Waiting);
        if let Some(worker) = pick(&self.workers, worker, waiting) {
            self.woken(worker, expired);
        }
    }

    pub(super) fn woken(&mut self, worker: usize, expired: bool) {
        let (woken, actions) = self.state.woken(expired);
        match woken {
            Woken::Look => self.workers[worker] = Worker::Looking { quick: false },
            Woken::SleepOn => self.workers[worker] = Worker::Waiting,
            Woken::Exit => drop(self.workers.swap_remove(worker)),
        }
        self.apply(actions);
    }

    pub(super) fn step(&mut self, worker: usize, count: usize, pace: Pace) {
        match &mut self.workers[worker] {
            Worker::Created => {
                self.state.worker_started(CPUS);
                self.workers[worker] = Worker::Looking { quick: false };
                if self.state.begin_spawn() {
                    self.create();
                }
            }
            Worker::Looking { quick } => {
                let quick = *quick;
                self.look(worker, quick);
            }
            Worker::Running(..) => self.finish(worker, count, pace),
            Worker::GoesToSleep | Worker::Signalled => self.woken(worker, false),
            Worker::Waiting => {}
        }
    }

    pub(super) fn look(&mut self, worker: usize, quick: bool) {
        let mut batch = VecDeque::new();
        let (next, actions) = self.state.next(quick, &mut batch);
        match next {
            Next::Run(share) => {
                assert!(
                    quick || batch.len() == 1 || self.state.serial,
                    "no job waits for one that may block"
                );
                let in_order = batch
                    .iter()
                    .chain(self.state.shares.jobs(share))
                    .is_sorted_by_key(|queued| queued.id);
                assert!(in_order, "jobs of a share are taken in the order of submission");
                self.workers[worker] = Worker::Running(share, batch);
            }
            Next::Sleep => self.workers[worker] = Worker::GoesToSleep,
            Next::Exit => drop(self.workers.swap_remove(worker)),
        }
        self.apply(actions);
    }

    pub(super) fn finish(&mut self, worker: usize, count: usize, pace: Pace) {
        let quick = pace == Pace::Quick;
        let Worker::Running(share, batch) = &mut self.workers[worker] else {
            return;
        };
        let share = *share;
        let mut batch = std::mem::take(batch);
        let count = if quick {
            batch.len()
        } else {
            count.min(batch.len())
        };
        for queued in batch.drain(..count) {
            assert!(self.open.remove(&queued.work), "{} comes back once", queued.work);
        }
        self.state.finished(share, count, pace);
        self.state.end_batch(share, &mut batch);
        self.look(worker, quick);
    }

    pub(super) fn count(&self, which: fn(&Worker) -> bool) -> usize {
        self.workers.iter().filter(|worker| which(worker)).count()
    }

    pub(super) fn check(&self) {
        let state = &self.state;
        assert_eq!(
            state.cur,
            self.workers.len() + state.new,
            "cur_threads counts all workers, even those not created yet"
        );
        assert_eq!(
            state.pending,
            self.count(|worker| matches!(worker, Worker::Created))
        );
        let sleeping =
            self.count(|worker| matches!(worker, Worker::GoesToSleep | Worker::Waiting | Worker::Signalled));
        assert_eq!(state.idle + state.tokens, sleeping, "a woken worker is not idle");
        assert!(state.pending <= 1, "threads are created one at a time");
        let running = self.workers.iter().map(|worker| {
            if let Worker::Running(_, batch) = worker {
                batch.len()
            } else {
                0
            }
        });
        assert_eq!(state.active, running.sum::<usize>());
        assert!(
            state.new == 0 || self.care || state.pending > 0,
            "a requested thread will be created"
        );
        assert!(
            state.watch.is_none() || self.watch.is_some(),
            "an expected tick comes"
        );
        if state.serial {
            assert!(self.workers.len() <= 1, "a serial pool has at most one worker");
            let outstanding = state.active + state.shares.queued();
            assert!(
                outstanding == 0 || self.watch.is_some(),
                "a tick will collect jobs not delivered yet"
            );
        }
        for share in &self.shares {
            let running = self.count_running(*share);
            assert_eq!(state.shares.running(*share), running, "workers are counted");
        }
        let queued = state.shares.queued() > 0;
        let all_wait = queued && !state.has_next();
        assert!(
            !all_wait || self.count(|worker| matches!(worker, Worker::Running(..))) > 0,
            "jobs wait only for others of their share"
        );
        if state.has_next() {
            let busy = self.count(|worker| matches!(worker, Worker::Running(..) | Worker::Looking { .. }));
            let on_the_way = busy + state.tokens + state.new + state.pending;
            assert!(on_the_way > 0 || self.care, "queued jobs will be taken");
        }
    }

    pub(super) fn count_running(&self, share: ShareId) -> usize {
        let is_its = |worker: &&Worker| matches!(worker, Worker::Running(of, _) if *of == share);
        self.workers.iter().filter(is_its).count()
    }

    /// Runs every possible step, except ticks and expiry of idle times.
    pub(super) fn settle(&mut self) {
        while self.care
            || self
                .workers
                .iter()
                .any(|worker| !matches!(worker, Worker::Waiting))
        {
            self.care();
            let next = self
                .workers
                .iter()
                .position(|worker| !matches!(worker, Worker::Waiting));
            if let Some(worker) = next {
                self.step(worker, 1, Pace::Blocking);
            }
            self.check();
        }
    }

    /// Ends the pool.
    pub(super) fn stop(&mut self) {
        let actions = self.state.stop();
        self.apply(actions);
        self.settle();
        assert_eq!(self.state.cur, 0, "every worker ends");
    }
}

fn pick(workers: &[Worker], index: &prop::sample::Index, which: impl Fn(&Worker) -> bool) -> Option<usize> {
    let candidates: Vec<_> = (0..workers.len())
        .filter(|&worker| which(&workers[worker]))
        .collect();
    (!candidates.is_empty()).then(|| *index.get(&candidates))
}
