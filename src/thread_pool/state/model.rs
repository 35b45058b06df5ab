//! Property tests: simulated workers and one context drive the state machine in any order.

use std::collections::{BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;

/// A step of the simulation. Its numbers choose among the possible actions.
#[derive(Clone, Debug)]
enum Op {
    Submit(usize),
    Cancel(u64),
    SetParams(usize, usize),
    /// The care bottom half runs.
    Care,
    Tick,
    /// A worker takes its next step. A running worker finishes some jobs, the last of them quickly or not.
    Step(prop::sample::Index, usize, bool),
    /// A sleeping worker's idle time expires.
    Expire(prop::sample::Index),
    /// A sleeping worker wakes up spuriously.
    Spurious(prop::sample::Index),
    /// From now on, thread creation succeeds or fails.
    SetCreatable(bool),
}

fn op() -> impl Strategy<Value = Op> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        4 => (0..20_usize).prop_map(Op::Submit),
        1 => any::<u64>().prop_map(Op::Cancel),
        1 => (0..4_usize, 1..5_usize).prop_map(|(min, more)| Op::SetParams(min, min + more - 1)),
        3 => Just(Op::Care),
        1 => Just(Op::Tick),
        16 => (index(), 1..=BATCH, any::<bool>()).prop_map(|(worker, count, quick)| Op::Step(worker, count, quick)),
        1 => index().prop_map(Op::Expire),
        1 => index().prop_map(Op::Spurious),
        1 => any::<bool>().prop_map(Op::SetCreatable),
    ]
}

#[derive(Debug)]
enum Worker {
    Created,
    Looking {
        quick: bool,
    },
    Running(VecDeque<Queued<u64>>),
    /// Has released the lock, but does not wait yet.
    GoesToSleep,
    Waiting,
    Signalled,
}

#[derive(Debug)]
struct World {
    state: State<u64>,
    workers: Vec<Worker>,
    creatable: bool,
    care: bool,
    watch: Option<Watch>,
    /// The ids of jobs that were submitted and have not come back.
    open: BTreeSet<u64>,
}

impl World {
    fn new() -> Self {
        let params = ThreadPoolParams {
            min_threads: 0,
            max_threads: 3,
        };
        Self::with_state(State::new(params))
    }

    fn with_state(state: State<u64>) -> Self {
        Self {
            state,
            workers: Vec::new(),
            creatable: true,
            care: false,
            watch: None,
            open: BTreeSet::new(),
        }
    }

    fn apply(&mut self, actions: Actions) {
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

    fn run(&mut self, op: &Op) {
        match op {
            Op::Submit(count) => self.submit(*count),
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
            Op::Step(worker, count, quick) => {
                if let Some(worker) = pick(&self.workers, worker, |_| true) {
                    self.step(worker, *count, *quick);
                }
            }
            Op::Expire(worker) => self.wake_up(worker, true),
            Op::Spurious(worker) => self.wake_up(worker, false),
            Op::SetCreatable(creatable) => self.creatable = *creatable,
        }
        self.check();
    }

    fn submit(&mut self, count: usize) {
        let first = self.state.next_id;
        let ids = first..first + count as u64;
        self.open.extend(ids.clone());
        let (id, actions) = self.state.submit(ids);
        assert_eq!(id, first);
        self.apply(actions);
    }

    fn cancel(&mut self, id: u64) {
        let queued = self.state.queue.iter().any(|queued| queued.id == id);
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

    fn come_back(&mut self, work: u64) {
        assert!(self.open.remove(&work), "{work} comes back once");
    }

    fn care(&mut self) {
        if !std::mem::take(&mut self.care) {
            return;
        }
        if self.state.begin_spawn() {
            self.create();
        }
        while let Some(work) = self.state.take_inline() {
            self.come_back(work);
        }
    }

    fn create(&mut self) {
        if self.creatable {
            self.workers.push(Worker::Created);
        } else {
            let actions = self.state.spawn_failed();
            self.apply(actions);
        }
    }

    fn tick(&mut self) {
        if self.watch.take().is_some() {
            let actions = self.state.tick();
            self.apply(actions);
        }
    }

    fn wake_up(&mut self, worker: &prop::sample::Index, expired: bool) {
        let waiting = |worker: &Worker| matches!(worker, Worker::Waiting);
        if let Some(worker) = pick(&self.workers, worker, waiting) {
            self.woken(worker, expired);
        }
    }

    fn woken(&mut self, worker: usize, expired: bool) {
        let (woken, actions) = self.state.woken(expired);
        match woken {
            Woken::Look => self.workers[worker] = Worker::Looking { quick: false },
            Woken::SleepOn => self.workers[worker] = Worker::Waiting,
            Woken::Exit => drop(self.workers.swap_remove(worker)),
        }
        self.apply(actions);
    }

    fn step(&mut self, worker: usize, count: usize, quick: bool) {
        match &mut self.workers[worker] {
            Worker::Created => {
                self.state.worker_started();
                self.workers[worker] = Worker::Looking { quick: false };
                if self.state.begin_spawn() {
                    self.create();
                }
            }
            Worker::Looking { quick } => {
                let quick = *quick;
                self.look(worker, quick);
            }
            Worker::Running(_) => self.finish(worker, count, quick),
            Worker::GoesToSleep | Worker::Signalled => self.woken(worker, false),
            Worker::Waiting => {}
        }
    }

    fn look(&mut self, worker: usize, quick: bool) {
        let mut batch = VecDeque::new();
        let (next, actions) = self.state.next(quick, &mut batch);
        match next {
            Next::Run => {
                assert!(
                    quick || batch.len() == 1 || self.state.serial,
                    "no job waits for one that may block"
                );
                let in_order = batch
                    .iter()
                    .chain(&self.state.queue)
                    .is_sorted_by_key(|queued| queued.id);
                assert!(in_order, "jobs are taken in the order of submission");
                self.workers[worker] = Worker::Running(batch);
            }
            Next::Sleep => self.workers[worker] = Worker::GoesToSleep,
            Next::Exit => drop(self.workers.swap_remove(worker)),
        }
        self.apply(actions);
    }

    fn finish(&mut self, worker: usize, count: usize, quick: bool) {
        let Worker::Running(batch) = &mut self.workers[worker] else {
            return;
        };
        let mut batch = std::mem::take(batch);
        let count = if quick {
            batch.len()
        } else {
            count.min(batch.len())
        };
        for queued in batch.drain(..count) {
            assert!(self.open.remove(&queued.work), "{} comes back once", queued.work);
        }
        self.state.finished(count, quick);
        self.state.give_back(&mut batch);
        self.look(worker, quick);
    }

    fn count(&self, which: fn(&Worker) -> bool) -> usize {
        self.workers.iter().filter(|worker| which(worker)).count()
    }

    fn check(&self) {
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
            if let Worker::Running(batch) = worker {
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
            let outstanding = state.active + state.queue.len();
            assert!(
                outstanding == 0 || self.watch.is_some(),
                "a tick will collect jobs not delivered yet"
            );
        }
        if !state.queue.is_empty() {
            let busy = self.count(|worker| matches!(worker, Worker::Running(_) | Worker::Looking { .. }));
            let on_the_way = busy + state.tokens + state.new + state.pending;
            assert!(on_the_way > 0 || self.care, "queued jobs will be taken");
        }
    }

    /// Runs every possible step, except ticks and expiry of idle times.
    fn settle(&mut self) {
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
                self.step(worker, 1, false);
            }
            self.check();
        }
    }

    /// Ends the pool.
    fn stop(&mut self) {
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

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_job_returns_once_and_every_worker_ends(
        ops in prop::collection::vec(op(), 0..200), serial: bool,
    ) {
        let mut world = if serial { World::with_state(State::serial()) } else { World::new() };
        ops.iter().for_each(|op| world.run(op));
        world.settle();
        prop_assert!(world.open.is_empty(), "open: {:?}", world.open);
        world.stop();
    }

    #[test]
    fn thread_creation_resumes_after_failures(
        ops in prop::collection::vec(op(), 0..100),
    ) {
        let mut world = World::new();
        ops.iter().for_each(|op| world.run(op));
        world.run(&Op::SetParams(0, 4));
        world.creatable = false;
        world.submit(4);
        world.settle();
        world.creatable = true;
        world.tick();
        world.submit(1);
        prop_assert!(world.state.idle + world.state.tokens + world.state.new + world.state.pending > 0);
    }

    #[test]
    fn blocking_jobs_get_a_worker_each(max in 1..20_usize, count in 1..30_usize, history in 0..500_usize) {
        let mut world = World::new();
        world.run(&Op::SetParams(0, max));
        // A phase of quick jobs, after which few threads are requested.
        for _ in 0..history {
            world.submit(1);
            world.care();
            world.state.slowness = 0;
            world.settle();
            world.state.slowness = 0;
        }
        world.submit(count);
        for _ in 0..2 {
            block_all(&mut world);
            world.tick();
        }
        block_all(&mut world);
        prop_assert_eq!(world.count(|worker| matches!(worker, Worker::Running(_))), count.min(max));
    }
}

/// Runs every possible step until each worker either waits or runs a job that never ends.
fn block_all(world: &mut World) {
    let goes_on = |worker: &Worker| !matches!(worker, Worker::Waiting | Worker::Running(_));
    loop {
        world.care();
        let Some(worker) = world.workers.iter().position(goes_on) else {
            break;
        };
        world.step(worker, 1, false);
        world.check();
    }
    if world.care {
        block_all(world);
    }
}

fn running(world: &World) -> usize {
    world.count(|worker| matches!(worker, Worker::Running(_)))
}

#[test]
fn a_burst_finding_one_sleeper_requests_another() {
    let mut world = World::new();
    world.submit(1);
    world.settle();
    assert_eq!((world.state.cur, world.state.idle), (1, 1));
    world.submit(1);
    assert_eq!(
        (world.state.cur, world.state.idle),
        (1, 0),
        "the sleeping worker was woken"
    );
    world.submit(1);
    assert_eq!(
        (world.state.cur, world.state.new),
        (2, 1),
        "the woken worker no longer counts as idle"
    );
}

#[test]
fn a_batch_wakes_workers_one_by_one() {
    let mut world = World::new();
    world.run(&Op::SetParams(3, 3));
    world.settle();
    assert_eq!(world.state.idle, 3);
    world.submit(3);
    assert_eq!((world.state.idle, world.state.tokens), (2, 1));
    let woken = world
        .workers
        .iter()
        .position(|worker| matches!(worker, Worker::Signalled))
        .unwrap();
    world.step(woken, 1, false);
    world.step(woken, 1, false);
    assert_eq!((running(&world), world.state.idle, world.state.tokens), (1, 1, 1));
}

#[test]
fn one_worker_takes_quick_jobs_in_batches() {
    let mut world = World::new();
    world.submit(20);
    world.care();
    world.step(0, 1, true);
    world.step(0, 1, true);
    world.workers.truncate(1);
    world.state.pending = 0;
    world.state.cur = 1;
    for _ in 0..3 {
        world.step(0, 1, true);
    }
    assert_eq!((world.state.taken, world.state.cur), (20, 1));
}

#[test]
fn a_serial_pool_batches_even_slow_jobs() {
    let mut state = State::serial();
    let _ = state.submit(0..20);
    let mut batch = VecDeque::new();
    let _ = state.next(false, &mut batch);
    assert_eq!(batch.len(), SERIAL_BATCH);
}

#[test]
fn a_blocking_job_suspends_batching() {
    let mut state = State::new(ThreadPoolParams {
        min_threads: 0,
        max_threads: 1,
    });
    let mut batch = VecDeque::new();
    let mut take = |quick| {
        let _ = state.submit(0..20);
        let _ = state.next(quick, &mut batch);
        let count = batch.len();
        batch.clear();
        state.finished(count, quick);
        count
    };
    assert_eq!(take(true), BATCH);
    take(false);
    let singles = std::iter::repeat_with(|| take(true))
        .take_while(|&count| count == 1)
        .count();
    assert_eq!(singles, usize::from(CAUTION));
}

#[test]
fn a_surplus_worker_ends_and_passes_its_wakeup() {
    let mut world = World::new();
    world.run(&Op::SetParams(2, 2));
    world.settle();
    world.submit(1);
    world.run(&Op::SetParams(0, 1));
    world.settle();
    assert!(world.open.is_empty());
    assert_eq!((world.state.cur, world.state.idle), (1, 1));
}

#[test]
fn idle_workers_end_only_above_the_minimum() {
    let mut world = World::new();
    world.run(&Op::SetParams(1, 2));
    world.settle();
    world.woken(0, true);
    assert_eq!(world.state.cur, 1);
    world.run(&Op::SetParams(0, 2));
    world.woken(0, true);
    assert_eq!((world.state.cur, world.state.idle), (0, 0));
}

#[test]
fn a_failed_creation_rolls_back_all_counters() {
    let mut world = World::new();
    world.creatable = false;
    world.run(&Op::SetParams(3, 4));
    world.care();
    let Counters {
        cur_threads,
        new_threads,
        pending_threads,
        idle_threads,
        ..
    } = world.state.counters();
    assert_eq!(
        (cur_threads, new_threads, pending_threads, idle_threads),
        (0, 0, 0, 0)
    );
    assert_eq!(world.watch, Some(Watch::Retry), "creation will be retried");
    world.creatable = true;
    world.tick();
    world.settle();
    assert_eq!((world.state.cur, world.state.idle), (3, 3));
}
