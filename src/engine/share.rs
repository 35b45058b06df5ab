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

use super::inline::Misses;
use super::threads::ThreadsEngine;
use super::{Completer, IoRequest, Requests};
use crate::aio::AioContext;
use crate::thread_pool::{Outcome, Work};

/// Shorter batches are over before a worker has woken up.
const SHORTEST: usize = 32;

/// The IOThread keeps so many requests of a batch for itself; each side takes so many at a time.
const KEPT: usize = 12;
const TAKEN: usize = 4;

/// Cheaper requests are not worth a second CPU.
const CHEAP: Duration = Duration::from_nanos(400);

/// The IOThread waits for so long for what the worker has not finished, so that all of the batch comes back at once.
const PATIENCE: Duration = Duration::from_micros(8);

/// What both sides take from.
#[derive(Debug, Default)]
struct Pile {
    lists: Mutex<Lists>,
    /// Requests that the worker executes right now. Written under the lock.
    held: AtomicUsize,
}

#[derive(Debug, Default)]
struct Lists {
    /// For whoever takes them first.
    todo: Requests,
    /// What the worker has executed.
    done: Requests,
    /// What the worker would have had to wait for.
    missed: Requests,
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

    /// For the worker: gives back what it cannot execute without waiting.
    fn miss(&self, missed: impl Iterator<Item = Box<IoRequest>>) {
        let mut missed = missed.peekable();
        if missed.peek().is_some() {
            let missed: Requests = missed.collect();
            self.lists().missed.extend(missed);
        }
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
        let rest = self.todo.len().saturating_sub(TAKEN);
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
}

impl Sharing {
    pub(super) fn new(threads: Rc<ThreadsEngine>) -> Rc<Self> {
        Rc::new(Self {
            threads,
            pile: Arc::default(),
            asked: Cell::new(false),
            got: Cell::new(0),
            futile: Misses::default(),
        })
    }

    pub(super) fn is_sharing(&self) -> bool {
        self.asked.get()
    }

    /// Whether to share a batch of `len` requests that take `cost` each.
    pub(super) fn pays(&self, len: usize, cost: Duration) -> bool {
        len >= SHORTEST && cost >= CHEAP && !self.asked.get() && self.futile.is_worth_trying()
    }

    /// Leaves the tail of `batch` to whoever takes it first, and asks a worker to.
    pub(super) fn share(self: &Rc<Self>, batch: &mut Requests, completer: Rc<dyn Completer>) {
        self.pile.lists().todo.extend(batch.drain(KEPT..));
        self.asked.set(true);
        self.got.set(0);
        self.threads.submit_work(Box::new(Help {
            pile: Arc::clone(&self.pile),
            held: Requests::new(),
            back: SendWrapper::new((Rc::clone(self), completer)),
        }));
    }

    /// See [`Engine::take_back`](super::Engine::take_back).
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
        done.append(&mut lists.done);
        batch.len() + done.len() > before
    }

    /// The worker is back; what it finished late, and what it would have had to wait for, is dealt with.
    fn worker_is_back(&self, held: &mut Requests, completer: &Rc<dyn Completer>) {
        self.asked.set(false);
        let mut lists = self.pile.lists();
        let mut missed = std::mem::take(&mut lists.missed);
        let done = std::mem::take(&mut lists.done);
        drop(lists);
        self.futile.tell(self.got.get() + done.len() >= 2 * TAKEN);
        for request in done {
            completer.complete(request);
        }
        missed.append(held);
        for request in &mut missed {
            request.set_completer(Rc::clone(completer));
        }
        if !missed.is_empty() {
            self.threads.submit(&mut missed);
        }
        completer.worker_is_back();
    }
}

/// A worker's share of a batch.
struct Help {
    pile: Arc<Pile>,
    /// Taken and not given back; empty at the end, unless something went badly wrong.
    held: Requests,
    back: SendWrapper<(Rc<Sharing>, Rc<dyn Completer>)>,
}

impl Work for Help {
    fn run(&mut self) {
        while self.pile.exchange(&mut self.held) {
            let missed = self.held.extract_if(.., |request| !request.try_execute());
            self.pile.miss(missed);
        }
    }

    fn complete(mut self: Box<Self>, _ctx: &AioContext, _outcome: Outcome) {
        let mut held = std::mem::take(&mut self.held);
        let (sharing, completer) = &*self.back;
        sharing.worker_is_back(&mut held, completer);
    }
}
