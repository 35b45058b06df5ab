//! The part of the pool that the context's thread uses.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::{fmt, thread};

use smallvec::SmallVec;

use super::batch::Finished;
use super::core::Core;
use super::shares::ShareId;
use super::state::{BATCH, State};
use super::steps::Actions;
use super::worker::{Shared, run_one};
use super::{Counters, PoolFigures, Spawner, ThreadPoolParams, Work, future};
use crate::aio::{AioContext, BottomHalf, Timer, WeakAioContext};
use crate::defer::DeferScope;

/// The interval at which the pool checks whether it needs more workers, while jobs stay queued.
const STALL_TIME: Duration = Duration::from_millis(2);
/// The ratio of a worker's longest polling time to the context's. Workers poll longer because the time between two jobs
/// includes a completion, the submitter's own work, and a submission.
const POLL_FACTOR: u32 = 2;
/// The time after which a failed thread creation is retried.
const RETRY_TIME: Duration = Duration::from_millis(100);

/// The id of a submitted job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkId(u64);

impl WorkId {
    /// Returns the id of the `n`th job after this one. Both must belong to one batch.
    #[must_use]
    pub fn nth(self, n: usize) -> Self {
        Self(self.0 + n as u64)
    }
}

/// A pool of workers, bound to the context whose thread made it. Clones share the pool, and also the share of its
/// workers.
///
/// The last clone may be dropped only when no job is in flight. The drop waits for every worker, even for workers that
/// are still being created. If a job is in flight, the drop first waits for it and completes it; then a debug build
/// panics.
#[derive(Clone)]
pub struct ThreadPool {
    // Dropped before the pool.
    share: Rc<Share>,
    inner: Rc<Inner>,
}

/// A share of a pool. Dropping it removes the share.
struct Share {
    pool: Weak<Inner>,
    id: ShareId,
}

struct Inner {
    /// Weak, because the context's callbacks may own the pool.
    ctx: WeakAioContext,
    shared: Arc<Shared>,
    /// The number of jobs submitted but not completed.
    in_flight: Cell<usize>,
    /// Jobs collected but not completed. They are kept here so that a nested loop run by a callback can complete them.
    collected: RefCell<VecDeque<Finished<Box<dyn Work>>>>,
    /// An empty list, swapped with the list that workers fill.
    spare: RefCell<Vec<Finished<Box<dyn Work>>>>,
    completion: BottomHalf,
    /// Makes a nested loop run by a callback continue with `collected`.
    resume: BottomHalf,
    _care: BottomHalf,
    watch: Timer,
}

/// Returns a callback for the context that calls `run` on the pool. It does not keep the pool alive.
fn upgraded(weak: &Weak<Inner>, run: fn(&Inner)) -> impl Fn() + 'static {
    let weak = weak.clone();
    move || {
        if let Some(inner) = weak.upgrade() {
            run(&inner);
        }
    }
}

impl ThreadPool {
    /// The time after which an idle worker ends.
    pub const IDLE_TIME: Duration = Duration::from_secs(10);

    /// Makes a pool for `ctx`. Jobs are completed on the thread of `ctx`; workers inherit that thread's CPU affinity.
    ///
    /// # Panics
    ///
    /// The limits are impossible; see [`ThreadPoolParams`].
    #[must_use]
    pub fn new(ctx: &AioContext, params: ThreadPoolParams) -> Self {
        Self::with_spawner(ctx, params, Spawner::default(), Self::IDLE_TIME)
    }

    /// Makes a pool that creates its threads with `spawner`. Idle workers end after `idle_time`.
    ///
    /// # Panics
    ///
    /// The limits are impossible; see [`ThreadPoolParams`].
    #[must_use]
    pub fn with_spawner(
        ctx: &AioContext,
        params: ThreadPoolParams,
        spawner: Spawner,
        idle_time: Duration,
    ) -> Self {
        let pool = Self::with_state(ctx, State::new(params), spawner, idle_time);
        pool.update_params(params);
        pool
    }

    fn with_state(
        ctx: &AioContext,
        state: State<Box<dyn Work>>,
        spawner: Spawner,
        idle_time: Duration,
    ) -> Self {
        let inner = Rc::new_cyclic(|weak| {
            let on_context = |run| ctx.bottom_half(upgraded(weak, run));
            let completion = on_context(Inner::complete);
            let care = on_context(Inner::care);
            let shared = Shared::new(
                Core::new(state, POLL_FACTOR * ctx.poll_max()),
                completion.handle(),
                care.handle(),
                spawner,
                idle_time,
            );
            Inner {
                ctx: ctx.downgrade(),
                shared: Arc::new(shared),
                in_flight: Cell::new(0),
                collected: RefCell::default(),
                spare: RefCell::default(),
                completion,
                resume: on_context(Inner::complete),
                _care: care,
                watch: ctx.timer(upgraded(weak, Inner::tick)),
            }
        });
        let share = Share {
            pool: Rc::downgrade(&inner),
            id: ShareId::FIRST,
        };
        Self {
            share: Rc::new(share),
            inner,
        }
    }

    /// Makes a handle of the same pool whose jobs have a share of their own: see [`ThreadPoolParams::max_threads`]. The
    /// share lasts as long as the handle and its clones.
    #[must_use]
    pub fn with_share(&self) -> Self {
        let share = Share {
            pool: Rc::downgrade(&self.inner),
            id: self.inner.change(|state| (state.add_share(), Actions::default())),
        };
        Self {
            share: Rc::new(share),
            inner: Rc::clone(&self.inner),
        }
    }

    /// Makes another pool for `ctx`, with the spawner and idle time of this one.
    ///
    /// # Panics
    ///
    /// The limits are impossible; see [`ThreadPoolParams`].
    #[must_use]
    pub fn sibling(&self, ctx: &AioContext, params: ThreadPoolParams) -> Self {
        let Shared {
            spawner, idle_time, ..
        } = &*self.inner.shared;
        let sibling = Self::with_spawner(ctx, params, spawner.clone(), *idle_time);
        self.figures().append(sibling.figures());
        sibling
    }

    /// Makes another pool for `ctx`, with the spawner and idle time of this one and at most one worker. It is meant for
    /// jobs that could not run in parallel anyway.
    ///
    /// The worker takes several jobs at once, and these can no longer be cancelled. While it has more jobs to do, it
    /// delivers the finished ones together. The delay is about 100 us at most, or 2 ms if the next job blocks.
    #[must_use]
    pub fn serial_sibling(&self, ctx: &AioContext) -> Self {
        let Shared {
            spawner, idle_time, ..
        } = &*self.inner.shared;
        let sibling = Self::with_state(ctx, State::serial(), spawner.clone(), *idle_time);
        self.figures().append(sibling.figures());
        sibling
    }

    /// Queues one job.
    pub fn submit(&self, work: Box<dyn Work>) -> WorkId {
        self.inner.submit(self.share.id, 1, std::iter::once(work))
    }

    /// Queues all of `works` in order, at the cost of queuing one, and leaves the list empty. Returns the id of the
    /// first job; the other ids follow it in order.
    pub fn submit_batch(&self, works: &mut Vec<Box<dyn Work>>) -> WorkId {
        self.inner.submit(self.share.id, works.len(), works.drain(..))
    }

    /// Cancels a job that no worker has taken. The job is completed in a later pass, with
    /// [`Outcome::Cancelled`](super::Outcome::Cancelled).
    ///
    /// If the job was already taken, this changes nothing and returns false.
    pub fn cancel(&self, id: WorkId) -> bool {
        let cancelled = self.inner.shared.core.cancel(id.0);
        if cancelled {
            self.inner.completion.schedule();
        }
        cancelled
    }

    /// Changes the limits. Missing workers are created at once, and surplus workers end.
    ///
    /// # Panics
    ///
    /// The limits are impossible (see [`ThreadPoolParams`]), or the pool is [serial](Self::serial_sibling).
    pub fn update_params(&self, params: ThreadPoolParams) {
        let ThreadPoolParams {
            min_threads,
            max_threads,
        } = params;
        assert!(
            max_threads >= 1 && min_threads <= max_threads,
            "impossible limits: {params:?}"
        );
        let fixed = self.inner.change(|state| (state.is_serial(), Actions::default()));
        assert!(!fixed, "the limits of a serial pool cannot be changed");
        self.inner.change(|state| ((), state.set_params(params)));
    }

    /// Returns a snapshot of the pool's counters.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.inner.shared.core.counters()
    }

    /// Returns figures that any thread can read, of this pool and of the siblings made from it.
    #[must_use]
    pub fn figures(&self) -> Arc<PoolFigures> {
        Arc::clone(self.inner.shared.core.figures())
    }

    /// Returns the number of submitted jobs that are not completed yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.inner.in_flight.get()
    }

    /// Submits `job` at once and returns a future of its result (`thread_pool_submit_co`).
    ///
    /// The job runs even if the future is dropped. If the job panics, so does the future.
    pub fn run<T, F>(&self, job: F) -> impl Future<Output = T> + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (work, future) = future::job(job);
        self.submit(work);
        future
    }
}

impl Inner {
    fn submit(&self, share: ShareId, count: usize, works: impl Iterator<Item = Box<dyn Work>>) -> WorkId {
        self.in_flight.set(self.in_flight.get() + count);
        WorkId(self.change(|state| state.submit(share, works)))
    }

    fn change<T>(&self, change: impl FnOnce(&mut State<Box<dyn Work>>) -> (T, Actions)) -> T {
        let (result, actions) = self.shared.core.with(change);
        self.shared.apply(actions);
        result
    }

    /// Runs as the completion bottom half: completes finished jobs, unless the context has ended.
    fn complete(&self) {
        let Some(ctx) = self.ctx.upgrade() else { return };
        self.collect();
        let _scope = DeferScope::enter();
        loop {
            let Some(Finished { work, outcome }) = self.collected.borrow_mut().pop_front() else {
                break;
            };
            if !self.collected.borrow().is_empty() && !self.resume.is_scheduled() {
                self.resume.schedule();
            }
            self.in_flight.set(self.in_flight.get() - 1);
            work.complete(&ctx, outcome);
        }
        self.resume.cancel();
    }

    fn collect(&self) {
        let mut spare = self.spare.borrow_mut();
        self.shared.core.collect(&mut spare);
        self.collected.borrow_mut().extend(spare.drain(..));
    }

    /// Checks whether more workers are needed. In a serial pool, also collects the finished jobs of a worker that now
    /// blocks.
    fn tick(&self) {
        let serial = self.change(|state| (state.is_serial(), state.tick()));
        if serial {
            self.completion.schedule();
        }
    }

    /// Runs as the care bottom half: creates a thread, runs jobs inline, arms the watch timer.
    fn care(&self) {
        let retry = self.shared.care_for.retry.swap(false, Ordering::Relaxed);
        let stall = self.shared.care_for.stall.swap(false, Ordering::Relaxed);
        if retry {
            self.watch.arm_in(RETRY_TIME);
        } else if stall {
            self.watch.arm_in(STALL_TIME);
        }
        if self.shared.core.begin_spawn() {
            self.shared.spawn_worker();
        }
        self.run_inline();
    }

    /// Runs some queued jobs on this thread, if there are no workers. Returns whether there were any.
    fn run_some(&self) -> bool {
        let mut jobs = SmallVec::<[Box<dyn Work>; BATCH]>::new();
        self.shared.core.take_inline(&mut jobs);
        let any = !jobs.is_empty();
        for work in jobs {
            let finished = run_one(work);
            self.collected.borrow_mut().push_back(finished);
        }
        any
    }

    fn run_inline(&self) {
        if self.run_some() {
            self.completion.schedule();
            self.shared.care.schedule();
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.id != ShareId::FIRST
            && let Some(pool) = self.pool.upgrade()
        {
            pool.change(|state| ((), state.remove_share(self.id)));
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.change(|state| ((), state.stop()));
        self.shared.join();
        while self.run_some() {}
        self.collect();
        let jobs = self.collected.borrow();
        let forgotten = jobs.iter().filter(|job| job.work.is_awaited()).count();
        drop(jobs);
        self.complete();
        if forgotten > 0 && !thread::panicking() {
            tracing::error!(
                forgotten,
                "a thread pool was dropped with jobs in flight; waited for them"
            );
            debug_assert!(false, "a thread pool was dropped with {forgotten} jobs in flight");
        }
    }
}

impl fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadPool")
            .field("in_flight", &self.in_flight())
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}
