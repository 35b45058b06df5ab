//! Property tests: simulated workers and one context drive the state machine in any order.

mod world;

use proptest::prelude::*;

use super::*;
use world::{Op, Worker, World, op};

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
