//! One scenario per hot path: a step that a benchmark repeats.

#![allow(dead_code, reason = "each benchmark uses a part of it")]

mod device;
mod queue;
mod ring;

use std::cell::Cell;
use std::hint::black_box;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use vhost_user_blk::aio::{AioContext, BottomHalf};
use vhost_user_blk::blk::latency::{LatencyHistograms, Operation};
use vhost_user_blk::defer::{DeferScope, DeferredCall};
use vhost_user_blk::thread_pool::{Outcome, Spawner, ThreadPool, ThreadPoolParams, Work};

pub(crate) use ring::Ring;

/// Number of requests, bottom halves or jobs in one step: as many as an IOThread takes from a ring at once.
pub(crate) const BATCH: u16 = 64;

/// Number of disks on one IOThread.
const DISKS: u16 = 64;

/// The idle time of workers: longer than a benchmark takes, so that none ends.
const IDLE: Duration = Duration::from_secs(600);

/// A name, and a step that owns everything it needs.
pub(crate) type Scenario = (&'static str, Box<dyn FnMut()>);

/// Returns the scenarios that execute the same instructions every time.
pub(crate) fn deterministic() -> Vec<Scenario> {
    vec![
        ("chains", chains(Ring::new())),
        ("indirect_chains", chains(Ring::indirect())),
        ("used_ring", used_ring()),
        ("bottom_half", bottom_halves(1)),
        ("bottom_halves", bottom_halves(BATCH)),
        ("defer_scope", defer_scope()),
        ("latencies", latencies(BATCH)),
        ("latency", latencies(1)),
        ("device_null", device::null(BATCH)),
        ("device_page_cache", device::page_cache(3)),
        ("device_memory", device::memory(3)),
        ("many_disks", device::many(DISKS)),
        ("one_of_many_disks", device::one_of(DISKS)),
        // No thread can be created, so the context's own thread runs the jobs.
        (
            "pool_without_threads",
            pool(Spawner::new(|_, _| Err(io::ErrorKind::OutOfMemory.into()))),
        ),
    ]
}

/// Returns all scenarios. Here the pool has threads.
pub(crate) fn all() -> Vec<Scenario> {
    let mut all = deterministic();
    all.pop();
    all.push(("pool", pool(Spawner::default())));
    all
}

/// Takes a batch of three-descriptor chains from a ring and walks each.
fn chains(mut ring: Ring) -> Box<dyn FnMut()> {
    Box::new(move || {
        ring.offer();
        ring.take_all();
    })
}

/// Puts a batch of used elements into a ring, publishes them, and checks whether the driver wants a notification.
fn used_ring() -> Box<dyn FnMut()> {
    let mut ring = Ring::new();
    Box::new(move || ring.complete_all())
}

/// Counts the latencies of a batch of requests, as a queue does: an entry in a list for those that were taken together,
/// and one look at the clock for the publication of their answers. The loop has read the clock for the visit that takes
/// them anyway.
fn latencies(count: u16) -> Box<dyn FnMut()> {
    let (start, histograms, mut answered) = (Instant::now(), LatencyHistograms::default(), Vec::new());
    let now = move || u64::try_from(start.elapsed().as_nanos()).expect("a short time");
    let mut taken = now();
    Box::new(move || {
        for _ in 0..count {
            let (operation, taken) = (black_box(Operation::Read), black_box(taken));
            match answered.last_mut() {
                Some((last, then, requests)) if (*last, *then) == (operation, taken) => *requests += 1,
                _ => answered.push((operation, taken, 1)),
            }
        }
        let published = now();
        for (operation, taken, requests) in answered.drain(..) {
            histograms.record(operation, published - taken, requests);
        }
        taken = published;
    })
}

/// Schedules bottom halves and lets the loop run them.
fn bottom_halves(count: u16) -> Box<dyn FnMut()> {
    let ctx = AioContext::new().expect("make a context");
    let runs = Rc::new(Cell::new(0_u64));
    let make = |_| {
        let runs = Rc::clone(&runs);
        ctx.bottom_half(move || runs.set(runs.get() + 1))
    };
    let bhs: Vec<BottomHalf> = (0..count).map(make).collect();
    let mut expected = 0;
    Box::new(move || {
        bhs.iter().for_each(BottomHalf::schedule);
        ctx.poll(false);
        expected += u64::from(count);
        assert_eq!(runs.get(), expected, "each ran once");
    })
}

/// Defers the same call `BATCH` times in one scope.
fn defer_scope() -> Box<dyn FnMut()> {
    let calls = Rc::new(Cell::new(0_u64));
    let call = DeferredCall::new({
        let calls = Rc::clone(&calls);
        move || calls.set(calls.get() + 1)
    });
    let mut expected = 0;
    Box::new(move || {
        let scope = DeferScope::enter();
        for _ in 0..BATCH {
            black_box(&call).defer();
        }
        drop(scope);
        expected += 1;
        assert_eq!(calls.get(), expected, "one call for the whole scope");
    })
}

/// Submits a batch of jobs that do nothing and waits for their completions.
fn pool(spawner: Spawner) -> Box<dyn FnMut()> {
    struct Nothing(Rc<Cell<u64>>);
    // SAFETY: `run` does not touch the count; `complete` and the drop happen on the context's thread.
    unsafe impl Send for Nothing {}
    impl Work for Nothing {
        fn run(&mut self) {}
        fn complete(self: Box<Self>, _: &AioContext, _: Outcome) {
            self.0.set(self.0.get() + 1);
        }
    }
    let ctx = AioContext::new().expect("make a context");
    let pool = ThreadPool::with_spawner(&ctx, ThreadPoolParams::default(), spawner, IDLE);
    let done = Rc::new(Cell::new(0));
    let mut expected = 0;
    let mut works: Vec<Box<dyn Work>> = Vec::new();
    Box::new(move || {
        works.extend((0..BATCH).map(|_| Box::new(Nothing(Rc::clone(&done))) as Box<dyn Work>));
        pool.submit_batch(&mut works);
        expected += u64::from(BATCH);
        while done.get() < expected {
            ctx.poll(true);
        }
    })
}
