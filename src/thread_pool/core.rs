//! What meets between the context and the workers: one lock, one condition variable.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{
    figures::Counters,
    state::{Actions, Next, Queued, State, Woken},
};
use crate::aio::adaptive::PollWindow;
use crate::sync::{AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, lock};

/// How a work came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was run.
    Done,
    /// It was cancelled before anyone took it, and was not run.
    Cancelled,
    /// Its `run` panicked.
    Panicked,
}

/// A work on its way back.
#[derive(Debug)]
pub(super) struct Finished<W> {
    pub(super) work: W,
    pub(super) outcome: Outcome,
}

/// A pool without its threads.
#[derive(Debug)]
pub(super) struct Core<W> {
    locked: Mutex<Locked<W>>,
    /// Wakeups of sleeping workers.
    wakeup: Condvar,
    /// The last worker has ended.
    all_gone: Condvar,
    /// Wakeups not consumed, for a worker that polls; a hint, written under the lock.
    posted: AtomicUsize,
    /// Workers poll for so long at most before they sleep.
    poll_max: Duration,
}

#[derive(Debug)]
struct Locked<W> {
    state: State<W>,
    /// What the context has not collected.
    done: Vec<Finished<W>>,
    /// The context knows of some of it.
    told: bool,
    /// A worker polls, and needs no wakeup.
    polling: bool,
}

/// One worker's works.
#[derive(Debug)]
pub(super) struct Batch<W> {
    /// Taken, not begun.
    pub(super) taken: VecDeque<Queued<W>>,
    /// Finished, the context does not know yet.
    pub(super) finished: Vec<Finished<W>>,
    /// The last works did not block.
    pub(super) quick: bool,
    /// The pool is serial.
    pub(super) serial: bool,
    /// When the first of them was begun.
    pub(super) begun: Option<Instant>,
    /// How long to poll before the next sleep.
    window: PollWindow,
}

impl<W> Batch<W> {
    fn new(poll_max: Duration) -> Self {
        Self {
            taken: VecDeque::new(),
            finished: Vec::new(),
            quick: false,
            serial: false,
            begun: None,
            window: if cfg!(loom) {
                PollWindow::open(poll_max)
            } else {
                PollWindow::new(poll_max)
            },
        }
    }
}

/// What a worker needs from its surroundings.
pub(super) trait Host<W> {
    /// Creates the next worker, see [`State::begin_spawn`](super::state::State::begin_spawn).
    fn spawn(&self);

    /// Runs some of `batch.taken` and puts them into `batch.finished`.
    ///
    /// Returns whether to go on with what is left before the context is told; else it is given back.
    fn run(&self, batch: &mut Batch<W>) -> bool;

    /// Tells the context that there is something to collect.
    fn completed(&self);

    /// Has the context do what a worker does not.
    fn apply(&self, actions: Actions);

    /// Waits until `woken`, for `window` at most, and without sleeping.
    fn poll(&self, window: Duration, woken: impl Fn() -> bool);
}

/// What a worker found in a round.
struct Round {
    next: Next,
    actions: Actions,
    /// The context has to be told that there is something to collect.
    completed: bool,
    /// Poll before sleeping.
    poll: bool,
}

impl<W> Locked<W> {
    fn deliver(&mut self, batch: &mut Batch<W>) {
        if !batch.finished.is_empty() {
            self.state.finished(batch.finished.len(), batch.quick);
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
            poll_max,
        }
    }

    /// Changes the state under the lock, then wakes whom it says.
    pub(super) fn with<T>(&self, change: impl FnOnce(&mut State<W>) -> (T, Actions)) -> (T, Actions) {
        let mut guard = lock(&self.locked);
        let (result, actions) = change(&mut guard.state);
        self.unlock_and_wake(guard, actions);
        (result, actions)
    }

    pub(super) fn counters(&self) -> Counters {
        lock(&self.locked).state.counters()
    }

    pub(super) fn begin_spawn(&self) -> bool {
        lock(&self.locked).state.begin_spawn()
    }

    pub(super) fn take_inline(&self) -> Option<W> {
        lock(&self.locked).state.take_inline()
    }

    /// Takes a queued work back and puts it with the finished ones; returns whether it was still queued.
    pub(super) fn cancel(&self, id: u64) -> bool {
        let mut locked = lock(&self.locked);
        let Some(work) = locked.state.cancel(id) else {
            return false;
        };
        locked.done.push(Finished {
            work,
            outcome: Outcome::Cancelled,
        });
        true
    }

    /// Moves what was finished to the end of `done`.
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
        self.with(|state| ((), state.spawn_failed())).1
    }

    /// The whole life of a worker, which ends after `idle` of nothing to do.
    pub(super) fn work(&self, host: &impl Host<W>, idle: Duration) {
        if self.worker_started() {
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
                Next::Run => {
                    while host.run(&mut batch) {
                        lock(&self.locked).deliver(&mut batch);
                    }
                }
                Next::Exit => return,
                Next::Sleep => {
                    let start = Instant::now();
                    if round.poll {
                        // Relaxed: a hint; what it says is looked up under the lock.
                        host.poll(batch.window.current(), || self.posted.load(Ordering::Relaxed) > 0);
                    }
                    let (woken, actions) = self.sleep(idle, round.poll);
                    // A model has no time: there a worker polls always or never.
                    if cfg!(not(loom)) {
                        batch.window.adapt(start.elapsed());
                    }
                    // The load may have changed meanwhile.
                    batch.quick = false;
                    host.apply(actions);
                    if !woken {
                        return;
                    }
                }
            }
        }
    }

    fn worker_started(&self) -> bool {
        let mut locked = lock(&self.locked);
        locked.state.worker_started();
        locked.state.begin_spawn()
    }

    /// Delivers what a worker finished and takes what it does next, under one lock.
    fn round(&self, batch: &mut Batch<W>) -> Round {
        let mut guard = lock(&self.locked);
        let locked = &mut *guard;
        locked.deliver(batch);
        let completed = !locked.told && !locked.done.is_empty();
        locked.told |= completed;
        locked.state.give_back(&mut batch.taken);
        let (next, actions) = locked.state.next(batch.quick, &mut batch.taken);
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

    /// Has a worker, that has `polled` or not, sleep until it is woken (then returns true) or has to end.
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

    /// Waits until no worker is left.
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

    /// Lets go of the lock, and wakes as many sleeping workers as were asked for: one that polls comes by itself.
    fn unlock_and_wake(&self, guard: MutexGuard<'_, Locked<W>>, actions: Actions) {
        let posted = guard.state.tokens();
        self.posted.store(posted, Ordering::Relaxed);
        let sleepers = posted - usize::from(guard.polling).min(posted);
        drop(guard);
        (0..actions.wake.min(sleepers)).for_each(|_| self.wakeup.notify_one());
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{sync::Mutex as StdMutex, thread};

    use super::*;
    use crate::thread_pool::ThreadPoolParams;

    /// Runs everything at once, which is always quick; remembers how much it was given.
    #[derive(Default)]
    struct Sizes(StdMutex<Vec<usize>>);

    impl Host<u32> for Sizes {
        fn spawn(&self) {
            unreachable!("one worker is enough");
        }

        fn run(&self, batch: &mut Batch<u32>) -> bool {
            self.0.lock().expect("nobody panics").push(batch.taken.len());
            let done = batch.taken.drain(..).map(|queued| Finished {
                work: queued.work,
                outcome: Outcome::Done,
            });
            batch.finished.extend(done);
            batch.quick = true;
            false
        }

        fn completed(&self) {}

        fn poll(&self, _window: Duration, _woken: impl Fn() -> bool) {}

        fn apply(&self, _actions: Actions) {}
    }

    #[test]
    fn the_first_work_after_a_sleep_is_taken_alone() {
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
            let _ = core.with(|state| state.submit(0..1));
            assert!(core.begin_spawn());
            scope.spawn(|| core.work(&sizes, Duration::from_secs(60)));
            sleeping();
            let _ = core.with(|state| state.submit(0..8));
            sleeping();
            let _ = core.with(|state| ((), state.stop()));
        });
        assert_eq!(*sizes.0.lock().unwrap(), [1, 1, 7]);
    }
}
