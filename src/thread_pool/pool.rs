//! The context's side of the pool.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    fmt,
    rc::{Rc, Weak},
    sync::{Arc, atomic::Ordering},
    thread,
    time::Duration,
};

use super::{
    Counters, Spawner, ThreadPoolParams, Work,
    core::{Core, Finished},
    future,
    state::{Actions, BATCH, State},
    worker::{Shared, run_one},
};
use crate::{
    aio::{AioContext, BottomHalf, Timer, WeakAioContext},
    defer::DeferScope,
};

/// While work stays queued, the need for more workers is looked at this often.
const STALL_TIME: Duration = Duration::from_millis(2);
/// Workers poll for up to so many times what the context polls: from one work to the next it is a completion, the
/// submitter's turn, and a submission.
const POLL_FACTOR: u32 = 2;
/// Creation of threads is tried again after this time.
const RETRY_TIME: Duration = Duration::from_millis(100);

/// A submitted work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkId(u64);

impl WorkId {
    /// The `n`th work after this one, if they were submitted in one batch.
    #[must_use]
    pub fn nth(self, n: usize) -> Self {
        Self(self.0 + n as u64)
    }
}

/// A pool of workers, bound to the context whose thread made it. Clones are the same pool.
///
/// The last clone may be dropped only when nothing is in flight. It waits for every worker, also for those which are
/// just being created. (If something is in flight nevertheless, a debug build panics, and a release build waits for
/// the works and completes them first.)
#[derive(Clone)]
pub struct ThreadPool {
    inner: Rc<Inner>,
}

struct Inner {
    /// Weak: the context's callbacks may own the pool.
    ctx: WeakAioContext,
    shared: Arc<Shared>,
    /// Submitted, not completed.
    in_flight: Cell<usize>,
    /// Collected, not completed; the context's, so that a loop run by a callback goes on with it.
    collected: RefCell<VecDeque<Finished<Box<dyn Work>>>>,
    /// Swapped with the list that workers fill.
    spare: RefCell<Vec<Finished<Box<dyn Work>>>>,
    completion: BottomHalf,
    /// Has a loop run by a callback go on with `collected`.
    resume: BottomHalf,
    _care: BottomHalf,
    watch: Timer,
}

/// A callback for the context that runs `run` on the pool, which it does not keep alive.
fn upgraded(weak: &Weak<Inner>, run: fn(&Inner, &AioContext)) -> impl Fn(&AioContext) + 'static {
    let weak = weak.clone();
    move |ctx| {
        if let Some(inner) = weak.upgrade() {
            run(&inner, ctx);
        }
    }
}

impl ThreadPool {
    /// A worker without work ends after this time.
    pub const IDLE_TIME: Duration = Duration::from_secs(10);

    /// Makes the pool of `ctx`. Works are completed on its thread, from which workers inherit their CPU affinity.
    ///
    /// # Panics
    ///
    /// If the limits are impossible, see [`ThreadPoolParams`].
    #[must_use]
    pub fn new(ctx: &AioContext, params: ThreadPoolParams) -> Self {
        Self::with_spawner(ctx, params, Spawner::default(), Self::IDLE_TIME)
    }

    /// The same with another way to create threads, and another time after which an idle one ends.
    ///
    /// # Panics
    ///
    /// As [`new`](Self::new).
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
        Self { inner }
    }

    /// Makes another pool of `ctx`, whose threads are created as those of this one are.
    ///
    /// # Panics
    ///
    /// As [`new`](Self::new).
    #[must_use]
    pub fn sibling(&self, ctx: &AioContext, params: ThreadPoolParams) -> Self {
        let Shared {
            spawner, idle_time, ..
        } = &*self.inner.shared;
        Self::with_spawner(ctx, params, spawner.clone(), *idle_time)
    }

    /// Makes another pool of `ctx`, whose thread is created as those of this one are: there is never more than one, for
    /// works that could not run side by side anyway.
    ///
    /// It takes several works at once, which can then not be cancelled any more. What it finishes while it has more to
    /// do is completed together, some 100 us later at most, or 2 ms if the next work blocks.
    #[must_use]
    pub fn serial_sibling(&self, ctx: &AioContext) -> Self {
        let Shared {
            spawner, idle_time, ..
        } = &*self.inner.shared;
        Self::with_state(ctx, State::serial(), spawner.clone(), *idle_time)
    }

    /// Queues one work.
    pub fn submit(&self, work: Box<dyn Work>) -> WorkId {
        self.inner.submit(1, std::iter::once(work))
    }

    /// Queues all of `works` in order, which leaves it empty, at the price of one. Their ids follow on each other;
    /// returns the first.
    pub fn submit_batch(&self, works: &mut Vec<Box<dyn Work>>) -> WorkId {
        self.inner.submit(works.len(), works.drain(..))
    }

    /// Cancels a work that no worker has taken: it is completed, in a later pass, with
    /// [`Outcome::Cancelled`](super::Outcome::Cancelled).
    ///
    /// Returns false, and changes nothing, if it was taken already.
    pub fn cancel(&self, id: WorkId) -> bool {
        let cancelled = self.inner.shared.core.cancel(id.0);
        if cancelled {
            self.inner.completion.schedule();
        }
        cancelled
    }

    /// Changes the limits. Missing workers are created at once, surplus ones end.
    ///
    /// # Panics
    ///
    /// If the limits are impossible, see [`ThreadPoolParams`], or the pool is [serial](Self::serial_sibling).
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
        assert!(!fixed, "the limits of a serial pool");
        self.inner.change(|state| ((), state.set_params(params)));
    }

    /// The pool's figures.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.inner.shared.core.counters()
    }

    /// Submitted works that are not completed.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.inner.in_flight.get()
    }

    /// Submits `job` at once; the future has its result (`thread_pool_submit_co`).
    ///
    /// The job runs also if the future is dropped. A panic of the job goes on from the future.
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
    fn submit(&self, count: usize, works: impl Iterator<Item = Box<dyn Work>>) -> WorkId {
        self.in_flight.set(self.in_flight.get() + count);
        WorkId(self.change(|state| state.submit(works)))
    }

    fn change<T>(&self, change: impl FnOnce(&mut State<Box<dyn Work>>) -> (T, Actions)) -> T {
        let (result, actions) = self.shared.core.with(change);
        self.shared.apply(actions);
        result
    }

    /// The completion bottom half.
    fn complete(&self, ctx: &AioContext) {
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
            work.complete(ctx, outcome);
        }
        self.resume.cancel();
    }

    fn collect(&self) {
        let mut spare = self.spare.borrow_mut();
        self.shared.core.collect(&mut spare);
        self.collected.borrow_mut().extend(spare.drain(..));
    }

    /// Looks whether more workers are needed, and for what a worker that blocks has finished before.
    fn tick(&self, _ctx: &AioContext) {
        let serial = self.change(|state| (state.is_serial(), state.tick()));
        if serial {
            self.completion.schedule();
        }
    }

    /// The care bottom half.
    fn care(&self, _ctx: &AioContext) {
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

    /// Runs some queued works here, if there are no workers.
    fn run_inline(&self) {
        for _ in 0..BATCH {
            let Some(work) = self.shared.core.take_inline() else {
                return;
            };
            let finished = run_one(work);
            self.collected.borrow_mut().push_back(finished);
            self.completion.schedule();
        }
        self.shared.care.schedule();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.change(|state| ((), state.stop()));
        self.shared.join();
        let forgotten = self.in_flight.get();
        while let Some(work) = self.shared.core.take_inline() {
            self.collected.borrow_mut().push_back(run_one(work));
        }
        if let Some(ctx) = self.ctx.upgrade() {
            self.complete(&ctx);
        }
        if forgotten > 0 && !thread::panicking() {
            tracing::error!(forgotten, "a thread pool was freed with works in flight");
            debug_assert!(false, "a thread pool was freed with {forgotten} works in flight");
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
