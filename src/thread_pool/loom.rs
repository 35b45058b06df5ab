//! Loom models of the pool: the real worker loop, lock and bottom halves, in every interleaving.

use std::time::Duration;

use loom::model::Builder;
use loom::thread;

use super::batch::{Batch, Finished, Outcome};
use super::core::{Core, Host};
use super::figures::ThreadPoolParams;
use super::pace::Pace;
use super::shares::ShareId;
use super::state::State;
use super::steps::Actions;
use crate::aio::BhHandle;
use crate::aio::loom::Loop;
use crate::sync::Arc;

fn model(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(body);
}

/// A pool whose jobs are numbers.
struct Pool {
    core: Core<usize>,
    completion: BhHandle,
    care: BhHandle,
}

/// A worker's view of the pool.
#[derive(Clone)]
struct Worker(Arc<Pool>);

impl Host<usize> for Worker {
    fn cpus(&self) -> usize {
        2
    }

    fn spawn(&self) {
        let host = self.clone();
        thread::spawn(move || host.0.core.work(&host, Duration::ZERO));
    }

    fn run(&self, batch: &mut Batch<usize>) -> bool {
        let count = if batch.serial { 1 } else { batch.taken.len() };
        let works = batch.taken.drain(..count).map(|queued| Finished {
            work: queued.work,
            outcome: Outcome::Done,
        });
        batch.finished.extend(works);
        batch.pace = Pace::Quick;
        !batch.taken.is_empty()
    }

    fn completed(&self) {
        self.0.completion.schedule();
    }

    fn poll(&self, _batch: &mut Batch<usize>, woken: impl Fn() -> bool) {
        if !woken() {
            thread::yield_now();
        }
    }

    fn apply(&self, actions: Actions) {
        if actions.spawn || actions.inline {
            self.0.care.schedule();
        }
    }
}

/// The context and its view of the pool.
struct Rig {
    context: Loop,
    worker: Worker,
    done: Vec<Finished<usize>>,
}

impl Rig {
    fn new(max_threads: usize) -> Self {
        Self::polling(max_threads, Duration::ZERO)
    }

    /// Makes a rig whose workers poll before they sleep.
    fn polling(max_threads: usize, poll_max: Duration) -> Self {
        let params = ThreadPoolParams {
            min_threads: 0,
            max_threads,
        };
        Self::with_core(Core::new(State::new(params), poll_max))
    }

    fn with_core(core: Core<usize>) -> Self {
        let context = Loop::new();
        let (completion, care) = (context.bottom_half(), context.bottom_half());
        let worker = Worker(Arc::new(Pool {
            core,
            completion,
            care,
        }));
        Self {
            context,
            worker,
            done: Vec::new(),
        }
    }

    fn submit(&self, works: impl IntoIterator<Item = usize>) -> u64 {
        let (id, actions) = self
            .worker
            .0
            .core
            .with(|state| state.submit(ShareId::FIRST, works));
        self.worker.apply(actions);
        id
    }

    /// Runs the loop until `count` jobs have come back.
    fn wait_for(&mut self, count: usize) {
        while self.done.len() < count {
            let ran = self.context.run();
            if ran & self.worker.0.care.mask() != 0 && self.worker.0.core.begin_spawn() {
                self.worker.spawn();
            }
            if ran & self.worker.0.completion.mask() != 0 {
                self.worker.0.core.collect(&mut self.done);
            }
            if ran == 0 {
                self.context.wait();
            }
        }
    }

    /// Waits for all workers. Returns the jobs that came back, sorted.
    fn free(self) -> Vec<usize> {
        let core = &self.worker.0.core;
        let ((), actions) = core.with(|state| ((), state.stop()));
        self.worker.apply(actions);
        core.wait_until_empty();
        let mut done: Vec<_> = self.done.iter().map(|finished| finished.work).collect();
        done.sort_unstable();
        done
    }
}

#[test]
fn every_job_comes_back_once() {
    model(|| {
        let mut rig = Rig::new(1);
        rig.submit([0]);
        rig.submit([1]);
        rig.wait_for(2);
        assert_eq!(rig.free(), [0, 1]);
    });
}

#[test]
fn two_workers_return_every_job_once() {
    model(|| {
        let mut rig = Rig::new(2);
        rig.submit([0, 1]);
        rig.wait_for(2);
        assert_eq!(rig.free(), [0, 1]);
    });
}

#[test]
fn a_worker_going_to_sleep_misses_no_job() {
    model(|| {
        let mut rig = Rig::new(1);
        rig.submit([0]);
        rig.wait_for(1);
        rig.submit([1]);
        rig.wait_for(2);
        assert_eq!(rig.free(), [0, 1]);
    });
}

#[test]
fn a_polling_worker_misses_no_job() {
    model(|| {
        let mut rig = Rig::polling(1, Duration::from_micros(1));
        rig.submit([0]);
        rig.wait_for(1);
        rig.submit([1]);
        rig.wait_for(2);
        assert_eq!(rig.free(), [0, 1]);
    });
}

#[test]
fn two_workers_one_polling_miss_no_job() {
    model(|| {
        let mut rig = Rig::polling(2, Duration::from_micros(1));
        rig.submit([0, 1]);
        rig.wait_for(2);
        rig.submit([2]);
        rig.wait_for(3);
        assert_eq!(rig.free(), [0, 1, 2]);
    });
}

#[test]
fn a_serial_pool_returns_jobs_delivered_late() {
    model(|| {
        let mut rig = Rig::with_core(Core::new(State::serial(), Duration::ZERO));
        rig.submit([0, 1]);
        rig.wait_for(1);
        rig.submit([2]);
        rig.wait_for(3);
        assert_eq!(rig.free(), [0, 1, 2]);
    });
}

#[test]
fn a_job_is_either_run_or_cancelled() {
    model(|| {
        let mut rig = Rig::new(1);
        let id = rig.submit([0]);
        if rig.worker.0.core.begin_spawn() {
            rig.worker.spawn();
        }
        if rig.worker.0.core.cancel(id) {
            rig.worker.0.completion.schedule();
        }
        rig.wait_for(1);
        assert_eq!(rig.free(), [0]);
    });
}

#[test]
fn free_waits_for_an_unstarted_worker() {
    model(|| {
        let rig = Rig::new(1);
        rig.submit([0]);
        if rig.worker.0.core.begin_spawn() {
            rig.worker.spawn();
        }
        let pool = Arc::clone(&rig.worker.0);
        rig.free();
        assert_eq!(pool.core.counters().cur_threads, 0);
        let mut done = Vec::new();
        pool.core.collect(&mut done);
        assert_eq!(done.len(), 1);
    });
}
