//! Long batches of short requests, executed by the IOThread and one worker of its pool together.
//!
//! While the IOThread copies data that is in memory, another CPU may be idle: a driver with one queue waits for this
//! batch. So the IOThread puts the tail of a long batch on a pile, from which it and the worker take a few requests at
//! a time. A worker that comes late finds an empty pile, so no request ever waits for a worker.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use send_wrapper::SendWrapper;

use super::inline::Misses;
use super::threads::ThreadsEngine;
use crate::aio::AioContext;
use crate::aio::busy_wait::Crowd;
use crate::engine::job::TryExecute;
use crate::io::{Completer, IoRequest, Requests};
use crate::thread_pool::{Outcome, Work, WorkId};

/// Minimum number of requests and minimum time of a batch to share. Shorter ones end before a worker has woken up.
const FEWEST: usize = 4;
const SHORTEST: Duration = Duration::from_micros(30);

/// Minimum time per request that is worth a second CPU.
const CHEAP: Duration = Duration::from_nanos(400);

/// The IOThread keeps the first 1/`KEPT` of a batch for itself, and executes it while the worker wakes up.
const KEPT: usize = 5;

/// Number of requests that each side takes at a time. Requests that take at least `LONG` are taken one at a time.
const TAKEN: usize = 4;
const LONG: Duration = Duration::from_micros(4);

/// Number of batches in a row that are not shared, after which sharing is over.
const LASTS: u8 = 4;

/// Time that the IOThread waits for the worker's last requests, so that the whole batch completes at once.
const PATIENCE: Duration = Duration::from_micros(12);

/// The requests that both sides take from.
#[derive(Debug, Default)]
struct Pile {
    lists: Mutex<Lists>,
    /// Number of requests that the worker is executing. Written under the lock.
    held: AtomicUsize,
}

#[derive(Debug, Default)]
struct Lists {
    /// Number of requests that each side takes at a time.
    step: usize,
    /// Requests that neither side has taken yet.
    todo: Requests,
    /// Requests that the worker has executed.
    done: Requests,
}

impl Pile {
    fn lists(&self) -> MutexGuard<'_, Lists> {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the worker's finished requests in `held`, and takes new ones. Returns false if none are left. Worker
    /// only.
    fn exchange(&self, held: &mut Requests) -> bool {
        let mut lists = self.lists();
        lists.done.append(held);
        lists.take(held);
        // Relaxed: a hint. The lock protects the requests themselves.
        self.held.store(held.len(), Ordering::Relaxed);
        !held.is_empty()
    }

    fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed) > 0
    }

    /// Waits a moment for the worker. IOThread only.
    fn wait(&self) {
        let start = Instant::now();
        while self.is_held() && start.elapsed() < PATIENCE {
            std::hint::spin_loop();
        }
    }
}

impl Lists {
    /// Moves some of the requests that are left to the end of `batch`.
    fn take(&mut self, batch: &mut Requests) {
        let rest = self.todo.len().saturating_sub(self.step);
        batch.extend(self.todo.drain(rest..));
    }
}

/// The sharing of one queue's batches. IOThread only.
#[derive(Debug)]
pub(super) struct Sharing<E: TryExecute> {
    threads: Rc<ThreadsEngine<E>>,
    crowd: Crowd,
    pile: Arc<Pile>,
    /// A worker was asked to help and has not finished.
    asked: Cell<bool>,
    /// The last help that was submitted.
    help: Cell<Option<WorkId>>,
    /// Number of requests of the current batch that the worker has executed.
    got: Cell<usize>,
    /// Misses are batches of which the worker got next to nothing, because it woke up too late or no CPU was free.
    futile: Misses,
    /// Number of batches until sharing is over. A worker that helps sets it to [`LASTS`].
    left: Cell<u8>,
    /// Number of requests of the next batch that each side takes at a time.
    step: Cell<usize>,
    /// The last help, for the next batch.
    idle: RefCell<Option<Box<Help<E>>>>,
    /// An empty list, kept for its capacity.
    late: RefCell<Requests>,
}

impl<E: TryExecute> Sharing<E> {
    pub(super) fn new(threads: Rc<ThreadsEngine<E>>, crowd: Crowd) -> Rc<Self> {
        Rc::new(Self {
            threads,
            crowd,
            pile: Arc::default(),
            asked: Cell::new(false),
            help: Cell::default(),
            got: Cell::new(0),
            futile: Misses::default(),
            left: Cell::new(0),
            step: Cell::new(TAKEN),
            idle: RefCell::default(),
            late: RefCell::default(),
        })
    }

    pub(super) fn is_sharing(&self) -> bool {
        self.asked.get()
    }

    /// Returns whether workers have helped with most of the last batches.
    pub(super) fn pays(&self) -> bool {
        self.left.get() > 0
    }

    /// Returns whether to share a batch of `len` requests that take `cost` each.
    pub(super) fn is_worthwhile(&self, len: usize, cost: Duration) -> bool {
        let worth = len >= FEWEST && self.can_help(len, cost);
        if !worth {
            self.left.set(self.left.get().saturating_sub(1));
        }
        worth
    }

    fn can_help(&self, len: usize, cost: Duration) -> bool {
        self.step.set(if cost < LONG { TAKEN } else { 1 });
        let long = u32::try_from(len).is_ok_and(|len| cost * len >= SHORTEST);
        long && cost >= CHEAP && !self.crowd.is_dense() && !self.asked.get() && self.futile.is_worth_trying()
    }

    /// Puts the tail of `batch` on the pile, and asks a worker to help.
    pub(super) fn share(self: &Rc<Self>, batch: &mut Requests, completer: &Rc<dyn Completer>) {
        let help = self.leave_tail(batch, completer);
        self.help.set(Some(self.threads.submit_work(help)));
    }

    /// Puts the tail of `batch` on the pile. The caller must submit the returned work.
    fn leave_tail(self: &Rc<Self>, batch: &mut Requests, completer: &Rc<dyn Completer>) -> Box<Help<E>> {
        let kept = batch.len() / KEPT;
        let mut lists = self.pile.lists();
        lists.step = self.step.get();
        lists.todo.extend(batch.drain(kept..));
        drop(lists);
        self.asked.set(true);
        self.got.set(0);
        let idle = self.idle.borrow_mut().take();
        let mut help = idle.unwrap_or_else(|| {
            Box::new(Help {
                disk: Arc::clone(self.threads.disk()),
                pile: Arc::clone(&self.pile),
                held: Requests::new(),
                missed: Requests::new(),
                back: None,
            })
        });
        help.back = Some(SendWrapper::new((Rc::downgrade(self), Rc::downgrade(completer))));
        help
    }

    /// Takes requests from the pile into `batch`, and the worker's finished ones into `done`. Returns false if there
    /// were none.
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

    /// Ends the worker's help: completes the requests that it finished late, and submits those that it has `left`.
    fn worker_is_back(&self, left: &mut Requests, completer: &Rc<dyn Completer>) {
        self.asked.set(false);
        let mut done = self.late.take();
        let mut lists = self.pile.lists();
        std::mem::swap(&mut lists.done, &mut done);
        // A worker that panicked did not reset this.
        self.pile.held.store(0, Ordering::Relaxed);
        drop(lists);
        let helped = self.got.get() + done.len() >= 2 * self.step.get();
        self.futile.tell(helped);
        if helped {
            self.left.set(LASTS);
            self.crowd.has_room();
        }
        for request in done.drain(..) {
            request.disband(|request| completer.complete(request));
        }
        self.late.replace(done);
        for request in left.iter_mut() {
            request.set_completer(Rc::clone(completer));
        }
        if !left.is_empty() {
            self.threads.submit(left);
        }
    }
}

impl<E: TryExecute> Drop for Sharing<E> {
    fn drop(&mut self) {
        // A share of a pool is removed with no job in its queue.
        if let Some(help) = self.help.take().filter(|_| self.asked.get()) {
            self.threads.cancel(help);
        }
    }
}

/// The places to which a worker's help and the requests return. Their owner keeps them while it has requests in flight.
/// It need not wait for a worker that came too late for any request. The help must not keep them: they own the pool that
/// has the help.
type Home<E> = SendWrapper<(Weak<Sharing<E>>, Weak<dyn Completer>)>;

/// The places of a [`Home`], as long as they are in use.
type Owners<E> = (Rc<Sharing<E>>, Rc<dyn Completer>);

/// A worker's help with a batch.
#[derive(Debug)]
struct Help<E: TryExecute> {
    disk: Arc<E>,
    pile: Arc<Pile>,
    /// Requests that the worker has taken and not finished. Empty at the end, unless the worker panicked.
    held: Requests,
    /// Requests that would have had to wait.
    missed: Requests,
    /// Set while there is a batch.
    back: Option<Home<E>>,
}

impl<E: TryExecute> Help<E> {
    /// Executes requests from the pile with `execute`, which returns false for a request that would have to wait.
    fn help(&mut self, execute: impl Fn(&E::Session<'_>, &mut IoRequest) -> bool) {
        while self.pile.exchange(&mut self.held) {
            let Some(session) = self.disk.session(false) else {
                self.missed.append(&mut self.held);
                continue;
            };
            // One by one, so that a panic of `execute` loses no request.
            self.missed
                .extend(self.held.extract_if(.., |request| !execute(&session, request)));
        }
    }

    /// Takes the places to return to, if they still exist.
    fn take_home(&mut self) -> Option<Owners<E>> {
        let (sharing, completer) = self.back.take()?.take();
        Some((sharing.upgrade()?, completer.upgrade()?))
    }
}

impl<E: TryExecute> Work for Help<E> {
    fn run(&mut self) {
        self.help(E::try_execute);
    }

    fn is_awaited(&self) -> bool {
        self.back
            .as_ref()
            .is_some_and(|back| back.0.strong_count() > 0 && back.1.strong_count() > 0)
    }

    fn complete(mut self: Box<Self>, _ctx: &AioContext, _outcome: Outcome) {
        let Some((sharing, completer)) = self.take_home() else {
            return;
        };
        self.missed.append(&mut self.held);
        sharing.worker_is_back(&mut self.missed, &completer);
        sharing.idle.replace(Some(self));
    }
}

#[cfg(test)]
mod tests;
