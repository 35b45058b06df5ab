//! Long batches of short requests, executed by the IOThread and one worker of its pool together.
//!
//! While the IOThread copies what is in memory, another CPU may have nothing to do: a driver with one queue waits for
//! just this batch. So the IOThread leaves the tail of a long batch where both can take from it, a few requests at a
//! time, and goes on itself; a worker that comes late finds nothing, and no request ever waits for it.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use send_wrapper::SendWrapper;

use super::execute::try_execute;
use super::inline::Misses;
use super::threads::ThreadsEngine;
use crate::aio::AioContext;
use crate::io::{Completer, IoRequest, Requests};
use crate::storage::RawFile;
use crate::thread_pool::{Outcome, Work};

/// Shorter batches are over before a worker has woken up, in number and in time.
const FEWEST: usize = 4;
const SHORTEST: Duration = Duration::from_micros(30);

/// Cheaper requests are not worth a second CPU.
const CHEAP: Duration = Duration::from_nanos(400);

/// The IOThread keeps one in so many requests of a batch for itself, which it executes while the worker wakes up.
const KEPT: usize = 5;

/// Each side takes so many requests at a time, or single ones of those that take longer than the time.
const TAKEN: usize = 4;
const LONG: Duration = Duration::from_micros(4);

/// The IOThread waits for so long for what the worker has not finished, so that all of the batch comes back at once.
const PATIENCE: Duration = Duration::from_micros(12);

/// What both sides take from.
#[derive(Debug, Default)]
struct Pile {
    lists: Mutex<Lists>,
    /// Requests that the worker executes right now. Written under the lock.
    held: AtomicUsize,
}

#[derive(Debug, Default)]
struct Lists {
    /// How many each side takes at a time.
    step: usize,
    /// For whoever takes them first.
    todo: Requests,
    /// What the worker has executed.
    done: Requests,
}

impl Pile {
    fn lists(&self) -> MutexGuard<'_, Lists> {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the worker: gives back what it has executed, and takes some more; returns whether there was any.
    fn exchange(&self, held: &mut Requests) -> bool {
        let mut lists = self.lists();
        lists.done.append(held);
        lists.take(held);
        // Relaxed: a hint, and what it is about is under the lock.
        self.held.store(held.len(), Ordering::Relaxed);
        !held.is_empty()
    }

    fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed) > 0
    }

    /// For the IOThread: waits a moment for the worker.
    fn wait(&self) {
        let start = Instant::now();
        while self.is_held() && start.elapsed() < PATIENCE {
            std::hint::spin_loop();
        }
    }
}

impl Lists {
    /// Moves some of what is to do to the end of `batch`.
    fn take(&mut self, batch: &mut Requests) {
        let rest = self.todo.len().saturating_sub(self.step);
        batch.extend(self.todo.drain(rest..));
    }
}

/// One queue's side of it. IOThread only.
#[derive(Debug)]
pub(super) struct Sharing {
    threads: Rc<ThreadsEngine>,
    pile: Arc<Pile>,
    /// A worker was asked for and is not back.
    asked: Cell<bool>,
    /// Requests of the current batch that the worker has executed.
    got: Cell<usize>,
    /// Batches of which the worker got next to nothing: it woke up too late, or no CPU was free.
    futile: Misses,
    /// How many requests each side takes of the next batch at a time.
    step: Cell<usize>,
}

impl Sharing {
    pub(super) fn new(threads: Rc<ThreadsEngine>) -> Rc<Self> {
        Rc::new(Self {
            threads,
            pile: Arc::default(),
            asked: Cell::new(false),
            got: Cell::new(0),
            futile: Misses::default(),
            step: Cell::new(TAKEN),
        })
    }

    pub(super) fn is_sharing(&self) -> bool {
        self.asked.get()
    }

    /// Whether to share a batch of `len` requests that take `cost` each.
    pub(super) fn pays(&self, len: usize, cost: Duration) -> bool {
        if len < FEWEST {
            return false;
        }
        self.step.set(if cost < LONG { TAKEN } else { 1 });
        let long = u32::try_from(len).is_ok_and(|len| cost * len >= SHORTEST);
        long && cost >= CHEAP && !self.asked.get() && self.futile.is_worth_trying()
    }

    /// Leaves the tail of `batch` to whoever takes it first, and asks a worker to.
    pub(super) fn share(self: &Rc<Self>, batch: &mut Requests, completer: Rc<dyn Completer>) {
        let help = self.leave_tail(batch, completer);
        self.threads.submit_work(Box::new(help));
    }

    /// Leaves the tail of `batch` on the pile; what is returned has to be submitted.
    fn leave_tail(self: &Rc<Self>, batch: &mut Requests, completer: Rc<dyn Completer>) -> Help {
        let kept = batch.len() / KEPT;
        let mut lists = self.pile.lists();
        lists.step = self.step.get();
        lists.todo.extend(batch.drain(kept..));
        drop(lists);
        self.asked.set(true);
        self.got.set(0);
        Help {
            file: Arc::clone(self.threads.file()),
            pile: Arc::clone(&self.pile),
            held: Requests::new(),
            missed: Requests::new(),
            back: SendWrapper::new((Rc::clone(self), completer)),
        }
    }

    /// See [`Engine::take_back`](super::channel).
    pub(super) fn take_back(&self, batch: &mut Requests, done: &mut Requests) -> bool {
        if !self.asked.get() {
            return false;
        }
        let before = batch.len() + done.len();
        let mut lists = self.pile.lists();
        if lists.todo.is_empty() && self.pile.is_held() {
            drop(lists);
            self.pile.wait();
            lists = self.pile.lists();
        }
        lists.take(batch);
        self.got.set(self.got.get() + lists.done.len());
        for request in lists.done.drain(..) {
            request.disband(|request| done.push(request));
        }
        batch.len() + done.len() > before
    }

    /// The worker is back; what it finished late, and what it has `left`, is dealt with.
    fn worker_is_back(&self, left: &mut Requests, completer: &Rc<dyn Completer>) {
        self.asked.set(false);
        let mut lists = self.pile.lists();
        let done = std::mem::take(&mut lists.done);
        // One that panicked could not say that it holds nothing any more.
        self.pile.held.store(0, Ordering::Relaxed);
        drop(lists);
        self.futile
            .tell(self.got.get() + done.len() >= 2 * self.step.get());
        for request in done {
            request.disband(|request| completer.complete(request));
        }
        for request in left.iter_mut() {
            request.set_completer(Rc::clone(completer));
        }
        if !left.is_empty() {
            self.threads.submit(left);
        }
    }
}

/// A worker's share of a batch.
struct Help {
    file: Arc<RawFile>,
    pile: Arc<Pile>,
    /// Taken and not given back; empty at the end, unless it panicked.
    held: Requests,
    /// What it would have had to wait for.
    missed: Requests,
    back: SendWrapper<(Rc<Sharing>, Rc<dyn Completer>)>,
}

impl Help {
    /// Has `execute` do what is on the pile; it returns whether it did.
    fn help(&mut self, execute: impl Fn(&RawFile, &mut IoRequest) -> bool) {
        while self.pile.exchange(&mut self.held) {
            // One by one: a panic of `execute` loses none.
            self.missed
                .extend(self.held.extract_if(.., |request| !execute(&self.file, request)));
        }
    }
}

impl Work for Help {
    fn run(&mut self) {
        self.help(try_execute);
    }

    fn complete(mut self: Box<Self>, _ctx: &AioContext, _outcome: Outcome) {
        self.missed.append(&mut self.held);
        let (sharing, completer) = &*self.back;
        sharing.worker_is_back(&mut self.missed, completer);
    }
}

#[cfg(test)]
mod tests;
