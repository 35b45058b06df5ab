//! Property tests: simulated workers and one context drive the state machine in any order.

mod world;

use proptest::prelude::*;

use super::*;
use crate::thread_pool::shares::CAUTION;
use world::{CPUS, Op, SHARES, Worker, World, op};

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_job_returns_once_and_every_worker_ends(
        ops in prop::collection::vec(op(), 0..200), serial: bool, shares in 0..=SHARES,
    ) {
        let mut world = match (serial, shares) {
            (true, _) => World::with_state(State::serial()),
            (false, 0) => World::new(),
            (false, shares) => World::new().with_shares(shares),
        };
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
        prop_assert_eq!(world.count(|worker| matches!(worker, Worker::Running(..))), count.min(max));
    }
}

/// Returns how many workers run jobs of each share, once all jobs block and all threads are there.
fn blocked(world: &mut World) -> Vec<usize> {
    // New threads are requested one after the other, and partly by the timer.
    for _ in 0..4 {
        block_all(world);
        world.tick();
    }
    blocked_at_once(world)
}

/// Returns how many workers run jobs of each share, once all jobs block.
fn blocked_at_once(world: &mut World) -> Vec<usize> {
    block_all(world);
    world
        .shares
        .iter()
        .map(|share| world.count_running(*share))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_share_waits_for_another_ones_jobs(
        max in 1..70_usize, jobs in prop::collection::vec(0..200_usize, 2..8), order: prop::sample::Index,
    ) {
        let mut world = World::new().with_shares(jobs.len());
        world.run(&Op::SetParams(0, max));
        let last = order.index(jobs.len());
        for (share, count) in jobs.iter().enumerate().filter(|(share, _)| *share != last) {
            world.run(&Op::Submit(share, *count));
            blocked(&mut world);
        }
        world.run(&Op::Submit(last, jobs[last]));
        let running = blocked(&mut world);
        let others = running.iter().sum::<usize>() - running[last];
        prop_assert!(running.iter().zip(&jobs).all(|(running, jobs)| (*running > 0) == (*jobs > 0)));
        // The last share gets two thirds of what the others have left, and they have left something.
        let fair = (2 * max.saturating_sub(others) / 3).max(1);
        prop_assert!(running[last] >= fair.min(jobs[last]), "{:?} of {}", running, max);
        prop_assert!(running.iter().sum::<usize>() < max + jobs.len());
    }
}

#[test]
fn a_blocked_share_leaves_workers_free() {
    let mut world = World::new().with_shares(2);
    world.run(&Op::SetParams(0, 64));
    world.run(&Op::Submit(0, 1000));
    assert_eq!(blocked(&mut world), [43, 0]);
    world.run(&Op::Submit(1, 1000));
    assert_eq!(blocked(&mut world), [43, 14]);
}

#[test]
fn the_only_share_may_occupy_all_workers() {
    let mut world = World::new().with_shares(1);
    world.run(&Op::SetParams(0, 64));
    world.submit(1000);
    assert_eq!(blocked(&mut world), [64]);
    // A share that comes later gets a worker all the same.
    world.shares.push(world.state.add_share());
    world.run(&Op::Submit(1, 10));
    assert_eq!(blocked(&mut world), [64, 1]);
}

#[test]
fn shares_take_turns() {
    let mut world = World::new().with_shares(2);
    world.run(&Op::SetParams(0, 1));
    for share in [0, 1] {
        world.run(&Op::Submit(share, 3));
    }
    let mut state = world.state;
    state.cur = 1;
    let mut batch = VecDeque::new();
    let mut take = || {
        let (next, _) = state.next(false, &mut batch);
        batch.clear();
        if let Next::Run(share) = next {
            state.finished(share, 1, Pace::Blocking);
            state.end_batch(share, &mut batch);
        }
        next
    };
    let [first, second] = [world.shares[0], world.shares[1]].map(Next::Run);
    let turns: Vec<_> = (0..6).map(|_| take()).collect();
    assert_eq!(turns, [first, second, first, second, first, second]);
}

/// Runs every possible step until each worker either waits or runs a job that never ends.
fn block_all(world: &mut World) {
    let goes_on = |worker: &Worker| !matches!(worker, Worker::Waiting | Worker::Running(..));
    loop {
        world.care();
        let Some(worker) = world.workers.iter().position(goes_on) else {
            break;
        };
        world.step(worker, 1, Pace::Blocking);
        world.check();
    }
    if world.care {
        block_all(world);
    }
}

/// Runs every possible step of a world whose jobs take their time without sleeping, `steps` times.
fn keep_busy(world: &mut World, steps: usize) {
    for _ in 0..steps {
        world.care();
        for worker in (0..world.workers.len()).rev() {
            world.step(worker, 1, Pace::Busy);
            world.check();
        }
    }
}

#[test]
fn busy_jobs_get_a_worker_for_each_cpu() {
    let mut world = World::new().with_shares(2);
    world.run(&Op::SetParams(0, 64));
    world.run(&Op::Submit(0, 10_000));
    assert_eq!(blocked(&mut world)[0], 43);
    keep_busy(&mut world, 50);
    assert_eq!(blocked_at_once(&mut world), [CPUS, 0]);
    world.run(&Op::Submit(1, 10));
    assert_eq!(
        blocked_at_once(&mut world)[1],
        10,
        "of the other share nothing is known"
    );
}

#[test]
fn busy_jobs_that_begin_to_block_get_workers_again() {
    let mut world = World::new().with_shares(1);
    world.run(&Op::SetParams(0, 64));
    world.submit(10_000);
    keep_busy(&mut world, 50);
    assert_eq!(blocked_at_once(&mut world), [CPUS]);
    for _ in 0..8 {
        blocked(&mut world);
    }
    assert_eq!(blocked(&mut world), [64]);
}

fn running(world: &World) -> usize {
    world.count(|worker| matches!(worker, Worker::Running(..)))
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
    world.step(woken, 1, Pace::Blocking);
    world.step(woken, 1, Pace::Blocking);
    assert_eq!((running(&world), world.state.idle, world.state.tokens), (1, 1, 1));
}

#[test]
fn one_worker_takes_quick_jobs_in_batches() {
    let mut world = World::new();
    world.submit(20);
    world.care();
    world.step(0, 1, Pace::Quick);
    world.step(0, 1, Pace::Quick);
    world.workers.truncate(1);
    world.state.pending = 0;
    world.state.cur = 1;
    for _ in 0..3 {
        world.step(0, 1, Pace::Quick);
    }
    assert_eq!((world.state.taken, world.state.cur), (20, 1));
}

#[test]
fn a_serial_pool_batches_even_slow_jobs() {
    let mut state = State::serial();
    let _ = state.submit(ShareId::FIRST, 0..20);
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
    let mut take = |pace| {
        let _ = state.submit(ShareId::FIRST, 0..20);
        let _ = state.next(pace == Pace::Quick, &mut batch);
        let count = batch.len();
        batch.clear();
        state.finished(ShareId::FIRST, count, pace);
        state.end_batch(ShareId::FIRST, &mut batch);
        count
    };
    assert_eq!(take(Pace::Quick), BATCH);
    take(Pace::Blocking);
    let singles = std::iter::repeat_with(|| take(Pace::Quick))
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
