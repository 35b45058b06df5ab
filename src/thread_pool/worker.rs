//! The workers, and the state they share with the context.

use std::sync::Arc;
#[cfg(not(tsan))]
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

#[cfg(tsan)]
use crate::sync::Mutex;

use super::batch::{Batch, Finished};
use super::core::{Core, Host};
use super::pace::{Pace, QUICK};
use super::steps::{Actions, Watch};
use super::{Outcome, Spawner, Work};
use crate::aio::BhHandle;
use crate::aio::busy_wait::busy_wait;
use crate::aio::clock::Nanos;
use crate::aio::crowding::Way;
use crate::sys::clock::monotonic_nanos;
use crate::sys::process::thread_sleeps;
use crate::{affinity, panics};

/// The interval at which the worker of a serial pool delivers finished jobs while it has more to do. Each delivery
/// costs a wakeup of the context's thread, and a wakeup of the thread that waits for the jobs.
const TOGETHER: Duration = Duration::from_micros(100);

/// The state shared by the context and the workers.
pub(super) struct Shared {
    pub(super) core: Core<Box<dyn Work>>,
    /// Delivers finished jobs.
    pub(super) completion: BhHandle,
    /// Creates a thread, runs jobs inline, arms the watch timer.
    pub(super) care: BhHandle,
    pub(super) care_for: CareFor,
    pub(super) spawner: Spawner,
    pub(super) idle_time: Duration,
    /// The last part of the workers' names.
    pub(super) name: String,
    next_number: AtomicU64,
    failure_logged: AtomicBool,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Requests that workers leave for the care bottom half.
#[derive(Default)]
pub(super) struct CareFor {
    pub(super) stall: AtomicBool,
    pub(super) retry: AtomicBool,
}

impl Shared {
    pub(super) fn new(
        core: Core<Box<dyn Work>>,
        completion: BhHandle,
        care: BhHandle,
        spawner: Spawner,
        idle_time: Duration,
    ) -> Self {
        let name = thread::current().name().unwrap_or("pool").to_owned();
        Self {
            core,
            completion,
            care,
            care_for: CareFor::default(),
            spawner,
            idle_time,
            name,
            next_number: AtomicU64::new(0),
            failure_logged: AtomicBool::new(false),
            threads: Mutex::new(Vec::new()),
        }
    }

    /// Asks the context to carry out the actions that cannot be carried out here.
    pub(super) fn apply(&self, actions: Actions) {
        match actions.watch {
            // Relaxed: ordered by the bottom half's schedule and take.
            Some(Watch::Stall) => self.care_for.stall.store(true, Ordering::Relaxed),
            Some(Watch::Retry) => self.care_for.retry.store(true, Ordering::Relaxed),
            None => {}
        }
        if actions.spawn || actions.inline || actions.watch.is_some() {
            self.care.schedule();
        }
    }

    /// Creates the thread that `begin_spawn` granted.
    pub(super) fn spawn_worker(self: &Arc<Self>) {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::clone(self);
        let body = Box::new(move || shared.core.work(&shared, shared.idle_time));
        match self.spawner.spawn(format!("worker-{number}/{}", self.name), body) {
            Ok(thread) => {
                self.failure_logged.store(false, Ordering::Relaxed);
                let mut threads = self
                    .threads
                    .lock()
                    .unwrap_or_else(|poisoned| poisoned.into_inner());
                threads.retain(|thread| !thread.is_finished());
                threads.push(thread);
            }
            Err(err) => {
                if !self.failure_logged.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%err, pool = self.name, "cannot create a worker; going on without it and retrying");
                }
                self.apply(self.core.spawn_failed());
            }
        }
    }

    /// Waits until every worker has ended.
    pub(super) fn join(&self) {
        self.core.wait_until_empty();
        let threads = std::mem::take(
            &mut *self
                .threads
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner()),
        );
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!(pool = self.name, "a worker panicked outside of a job");
            }
        }
    }
}

impl Host<Box<dyn Work>> for Arc<Shared> {
    fn cpus(&self) -> usize {
        affinity::own_cpus()
    }

    fn spawn(&self) {
        self.spawn_worker();
    }

    fn run(&self, batch: &mut Batch<Box<dyn Work>>) -> bool {
        if batch.serial {
            return run_next(batch);
        }
        run_some(batch);
        false
    }

    fn completed(&self) {
        self.completion.schedule();
    }

    fn apply(&self, actions: Actions) {
        Shared::apply(self, actions);
    }

    fn poll(&self, batch: &mut Batch<Box<dyn Work>>, woken: impl Fn() -> bool) {
        let start = monotonic_nanos();
        if batch.crowding.way(start) != Way::Off {
            let window = Nanos::try_from(batch.window.current().as_nanos()).unwrap_or(Nanos::MAX);
            let times = (start, start.saturating_add(window));
            busy_wait(&mut batch.crowding, monotonic_nanos, times, woken);
            // Jobs sleep, so a sample would say little about the CPU. But looking takes no time.
            let end = monotonic_nanos();
            batch.crowding.overran(end, end.saturating_sub(times.1));
        }
    }
}

/// Runs the taken jobs, up to and including the first that is not quick.
fn run_some(batch: &mut Batch<Box<dyn Work>>) {
    // Looking costs a system call, which is too much for quick jobs.
    let sleeps = (batch.pace != Pace::Quick).then(thread_sleeps);
    batch.pace = Pace::Quick;
    let mut start = Instant::now();
    while batch.pace == Pace::Quick
        && let Some(queued) = batch.taken.pop_front()
    {
        let finished = run_one(queued.work);
        batch.finished.push(finished);
        let end = Instant::now();
        if end.duration_since(start) >= QUICK {
            let slept = sleeps.is_none_or(|before| thread_sleeps() != before);
            batch.pace = if slept { Pace::Blocking } else { Pace::Busy };
        }
        start = end;
    }
}

/// Runs one job. Returns whether the context may be told later.
fn run_next(batch: &mut Batch<Box<dyn Work>>) -> bool {
    let begun = *batch.begun.get_or_insert_with(Instant::now);
    if let Some(queued) = batch.taken.pop_front() {
        batch.finished.push(run_one(queued.work));
    }
    !batch.taken.is_empty() && begun.elapsed() < TOGETHER
}

pub(super) fn run_one(mut work: Box<dyn Work>) -> Finished<Box<dyn Work>> {
    // After a panic, only the owner uses the job again, and the outcome tells the owner of the panic.
    let outcome = match panics::contain(|| work.run()) {
        Ok(()) => Outcome::Done,
        Err(payload) => {
            tracing::error!(
                message = panics::message(&payload),
                "a job of the thread pool panicked"
            );
            Outcome::Panicked
        }
    };
    Finished { work, outcome }
}
