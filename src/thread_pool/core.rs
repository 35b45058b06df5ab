//! The state that the context shares with the workers: one lock, two condition variables.

use std::time::{Duration, Instant};

use super::batch::{Batch, Finished, Outcome};
use super::figures::{Counters, PoolFigures};
use super::pace::Pace;
use super::state::State;
use super::steps::{Actions, Next, Woken};
use crate::sync::{AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, lock};

/// A pool without its threads.
#[derive(Debug)]
pub(super) struct Core<W> {
    locked: Mutex<Locked<W>>,
    /// Wakes sleeping workers.
    wakeup: Condvar,
    /// Signalled when the last worker ends.
    all_gone: Condvar,
    /// Wakeups not consumed yet, for a worker that polls. A hint, written under the lock.
    posted: AtomicUsize,
    /// Written under the lock.
    figures: std::sync::Arc<PoolFigures>,
    /// The longest time a worker polls before it sleeps.
    poll_max: Duration,
}

#[derive(Debug)]
struct Locked<W> {
    state: State<W>,
    /// Finished jobs that the context has not collected.
    done: Vec<Finished<W>>,
    /// The context was told to collect, and has not done so yet.
    told: bool,
    /// A worker is polling and needs no wakeup.
    polling: bool,
}

/// The operations that a worker's loop needs from its environment.
pub(super) trait Host<W> {
    /// Returns the number of CPUs that the calling worker may use.
    fn cpus(&self) -> usize;

    /// Creates the next worker. See [`State::begin_spawn`](super::state::State::begin_spawn).
    fn spawn(&self);

    /// Runs some of the jobs in `batch.taken` and moves them to `batch.finished`.
    ///
    /// Returns true if the worker should continue with the rest before it tells the context. If false, the rest goes
    /// back to the queue.
    fn run(&self, batch: &mut Batch<W>) -> bool;

    /// Tells the context that there are jobs to collect.
    fn completed(&self);

    /// Asks the context to carry out the actions that a worker cannot.
    fn apply(&self, actions: Actions);

    /// Waits until `woken` returns true, for the batch's window at most, without sleeping.
    fn poll(&self, batch: &mut Batch<W>, woken: impl Fn() -> bool);
}

/// The result of a worker's round.
struct Round {
    next: Next,
    actions: Actions,
    /// The context must be told that there are jobs to collect.
    completed: bool,
    /// Poll before sleeping.
    poll: bool,
}

impl<W> Locked<W> {
    fn deliver(&mut self, batch: &mut Batch<W>) {
        if let Some(share) = batch.share
            && !batch.finished.is_empty()
        {
            self.state.finished(share, batch.finished.len(), batch.pace);
            self.done.append(&mut batch.finished);
        }
    }
}

impl<W> Core<W> {
    pub(super) fn new(state: State<W>, poll_max: Duration) -> Self {
        let locked = Locked {
            state,
            done: Vec::new(),
            told: false,
            polling: false,
        };
        Self {
            locked: Mutex::new(locked),
            wakeup: Condvar::new(),
            all_gone: Condvar::new(),
            posted: AtomicUsize::new(0),
            figures: std::sync::Arc::default(),
            poll_max,
        }
    }

    /// Changes the state under the lock, then wakes as many workers as the actions ask for.
    pub(super) fn with<T>(&self, change: impl FnOnce(&mut State<W>) -> (T, Actions)) -> (T, Actions) {
        let mut guard = lock(&self.locked);
        let (result, actions) = change(&mut guard.state);
        self.unlock_and_wake(guard, actions);
        (result, actions)
    }

    pub(super) fn figures(&self) -> &std::sync::Arc<PoolFigures> {
        &self.figures
    }

    pub(super) fn counters(&self) -> Counters {
        lock(&self.locked).state.counters()
    }

    pub(super) fn begin_spawn(&self) -> bool {
        let mut locked = lock(&self.locked);
        let spawn = locked.state.begin_spawn();
        locked.state.show(&self.figures);
        spawn
    }

    pub(super) fn take_inline(&self, jobs: &mut impl Extend<W>) {
        let mut locked = lock(&self.locked);
        locked.state.take_inline(jobs);
        locked.state.show_queued(&self.figures);
    }

    /// Moves a queued job to the finished jobs, as cancelled. Returns whether it was still queued.
    pub(super) fn cancel(&self, id: u64) -> bool {
        let mut locked = lock(&self.locked);
        let Some(work) = locked.state.cancel(id) else {
            return false;
        };
        locked.done.push(Finished {
            work,
            outcome: Outcome::Cancelled,
        });
        locked.state.show(&self.figures);
        true
    }

    /// Appends the finished jobs to `done`.
    pub(super) fn collect(&self, done: &mut Vec<Finished<W>>) {
        let mut locked = lock(&self.locked);
        locked.told = false;
        if done.is_empty() {
            std::mem::swap(&mut locked.done, done);
        } else {
            done.append(&mut locked.done);
        }
    }

    pub(super) fn spawn_failed(&self) -> Actions {
        let failed = |state: &mut State<W>| {
            self.figures.spawn_failures.add(1);
            ((), state.spawn_failed())
        };
        self.with(failed).1
    }

    /// Runs a worker's loop, which ends after the worker has been idle for `idle`.
    pub(super) fn work(&self, host: &impl Host<W>, idle: Duration) {
        if self.worker_started(host.cpus()) {
            host.spawn();
        }
        let mut batch = Batch::new(self.poll_max);
        loop {
            let round = self.round(&mut batch);
            if round.completed {
                host.completed();
            }
            host.apply(round.actions);
            match round.next {
                Next::Run(_) => {
                    while host.run(&mut batch) {
                        lock(&self.locked).deliver(&mut batch);
                    }
                }
                Next::Exit => return,
                Next::Sleep => {
                    let start = Instant::now();
                    if round.poll {
                        // Relaxed: a hint, which `sleep` checks under the lock.
                        host.poll(&mut batch, || self.posted.load(Ordering::Relaxed) > 0);
                    }
                    let (woken, actions) = self.sleep(idle, round.poll);
                    // A model has no clock: there, a worker always polls or never does.
                    if cfg!(not(loom)) {
                        batch.window.adapt(start.elapsed());
                    }
                    // The load may have changed during the sleep.
                    batch.pace = Pace::Blocking;
                    host.apply(actions);
                    if !woken {
                        return;
                    }
                }
            }
        }
    }

    fn worker_started(&self, cpus: usize) -> bool {
        let mut locked = lock(&self.locked);
        locked.state.worker_started(cpus);
        let spawn = locked.state.begin_spawn();
        locked.state.show(&self.figures);
        spawn
    }

    /// Delivers a worker's finished jobs and takes its next ones, under one lock.
    fn round(&self, batch: &mut Batch<W>) -> Round {
        let mut guard = lock(&self.locked);
        let locked = &mut *guard;
        locked.deliver(batch);
        let completed = !locked.told && !locked.done.is_empty();
        locked.told |= completed;
        if let Some(share) = batch.share.take() {
            locked.state.end_batch(share, &mut batch.taken);
        }
        let (next, actions) = locked.state.next(batch.pace == Pace::Quick, &mut batch.taken);
        if let Next::Run(share) = next {
            batch.share = Some(share);
        }
        (batch.serial, batch.begun) = (locked.state.is_serial(), None);
        let poll = next == Next::Sleep && !locked.polling && !batch.window.current().is_zero();
        locked.polling |= poll;
        self.leave(&locked.state, next == Next::Exit);
        self.unlock_and_wake(guard, actions);
        Round {
            next,
            actions,
            completed,
            poll,
        }
    }

    /// Makes the calling worker sleep until it is woken (then returns true) or must end. `polled` says whether it
    /// polled before.
    fn sleep(&self, idle: Duration, polled: bool) -> (bool, Actions) {
        let mut guard = lock(&self.locked);
        guard.polling &= !polled;
        let mut expired = false;
        loop {
            let (woken, actions) = guard.state.woken(expired);
            if woken != Woken::SleepOn {
                self.leave(&guard.state, woken == Woken::Exit);
                self.unlock_and_wake(guard, actions);
                return (woken == Woken::Look, actions);
            }
            let result = self.wakeup.wait_timeout(guard, idle);
            let (again, timeout) = result.unwrap_or_else(|poisoned| poisoned.into_inner());
            guard = again;
            expired = timeout.timed_out();
        }
    }

    /// Waits until the last worker has ended.
    pub(super) fn wait_until_empty(&self) {
        let mut guard = lock(&self.locked);
        while guard.state.counters().cur_threads > 0 {
            guard = self
                .all_gone
                .wait(guard)
                .unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    fn leave(&self, state: &State<W>, leaving: bool) {
        if leaving && state.counters().cur_threads == 0 {
            self.all_gone.notify_all();
        }
    }

    /// Releases the lock, then wakes as many sleeping workers as `actions` asks for. A polling worker needs no wakeup.
    fn unlock_and_wake(&self, guard: MutexGuard<'_, Locked<W>>, actions: Actions) {
        let posted = guard.state.tokens();
        self.posted.store(posted, Ordering::Relaxed);
        guard.state.show(&self.figures);
        let sleepers = posted - usize::from(guard.polling).min(posted);
        drop(guard);
        (0..actions.wake.min(sleepers)).for_each(|_| self.wakeup.notify_one());
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Mutex as StdMutex;
    use std::thread;

    use super::*;
    use crate::thread_pool::ThreadPoolParams;
    use crate::thread_pool::shares::ShareId;

    /// Runs every batch at once, and always as quick. Records the size of each batch.
    #[derive(Default)]
    struct Sizes(StdMutex<Vec<usize>>);

    impl Host<u32> for Sizes {
        fn cpus(&self) -> usize {
            1
        }

        fn spawn(&self) {
            unreachable!("this test needs only one worker");
        }

        fn run(&self, batch: &mut Batch<u32>) -> bool {
            self.0.lock().expect("nobody panics").push(batch.taken.len());
            let done = batch.taken.drain(..).map(|queued| Finished {
                work: queued.work,
                outcome: Outcome::Done,
            });
            batch.finished.extend(done);
            batch.pace = Pace::Quick;
            false
        }

        fn completed(&self) {}

        fn poll(&self, _batch: &mut Batch<u32>, _woken: impl Fn() -> bool) {}

        fn apply(&self, _actions: Actions) {}
    }

    #[test]
    fn the_first_job_after_sleep_is_taken_alone() {
        let params = ThreadPoolParams {
            min_threads: 0,
            max_threads: 1,
        };
        let core = Core::new(State::new(params), Duration::ZERO);
        let sizes = Sizes::default();
        let sleeping = || {
            while core.counters().idle_threads == 0 {
                thread::yield_now()
            }
        };
        thread::scope(|scope| {
            let _ = core.with(|state| state.submit(ShareId::FIRST, 0..1));
            assert!(core.begin_spawn());
            scope.spawn(|| core.work(&sizes, Duration::from_secs(60)));
            sleeping();
            let _ = core.with(|state| state.submit(ShareId::FIRST, 0..8));
            sleeping();
            let _ = core.with(|state| ((), state.stop()));
        });
        assert_eq!(*sizes.0.lock().unwrap(), [1, 1, 7]);
    }
}
