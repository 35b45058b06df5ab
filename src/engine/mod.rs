//! How I/O is executed: a request is handed down, and comes back to whoever handed it down.
//!
//! An [`Engine`] serves one storage for one queue, on its IOThread. [`Engine::try_inline`] does what takes no waiting;
//! [`Engine::submit`] takes the rest of the batch, and each request comes back exactly once, on the same IOThread,
//! through the [`Completer`] it carries, inside a defer scope.
//!
//! A [`Plan`] says which engine a disk gets, [`Engines`] are what its queues on one IOThread share.

mod error;
mod fault;
mod file;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

pub use error::Error;
pub use fault::{FaultRule, Faults};
pub use file::plan::{Choice, Plan};

use crate::aio::AioContext;
use crate::io::{Completer, Requests};
use crate::storage::Storage;
use crate::thread_pool::ThreadPool;
use fault::inject::Injector;
use file::inline::Inline;
use file::kernel::KernelEngine;
use file::linux_aio::LinuxAio;
use file::merge::Merger;
use file::plan::Executor;
use file::share::Sharing;
use file::threads::ThreadsEngine;
use file::uring::Uring;

/// What the queues of one disk on one IOThread share.
#[derive(Debug)]
pub struct Engines {
    plan: Plan,
    storage: Arc<Storage>,
    shared: Shared,
    /// The number of the queue whose batch was the last one.
    last: Rc<Cell<usize>>,
    queues: Cell<usize>,
    injector: Option<Rc<Injector>>,
}

/// The closed set of engines.
#[derive(Clone, Debug)]
enum Shared {
    /// Blocking calls in the IOThread's thread pool.
    Threads(Rc<ThreadsEngine>),
    /// io_uring; what it does not take is for the pool.
    IoUring(Rc<KernelEngine<Uring>>),
    /// Linux AIO; what it does not take is for the pool.
    Native(Rc<KernelEngine<LinuxAio>>),
    /// Another one, with faults.
    Faulty(Rc<Injector>, Rc<Engine>),
}

impl Engines {
    /// Sets up what `plan` asks for, on the context of the calling thread.
    ///
    /// # Errors
    /// The kernel gives no further ring, though it has given one to [`Plan::choose`].
    pub fn new(ctx: &AioContext, plan: Plan, storage: Arc<Storage>, pool: ThreadPool) -> Result<Self, Error> {
        let threads = ThreadsEngine::new(ctx, Arc::clone(&storage), pool);
        let disk = || storage.path().display().to_string();
        let shared = match (plan.executor, storage.fd()) {
            (Executor::IoUring, Some(fd)) => {
                let ring = Uring::new(fd).map_err(Error::IoUring)?;
                Shared::IoUring(Rc::new(KernelEngine::new(ctx, disk(), ring, threads)?))
            }
            (Executor::Native, Some(fd)) => {
                let ring = LinuxAio::new(fd).map_err(Error::Native)?;
                Shared::Native(Rc::new(KernelEngine::new(ctx, disk(), ring, threads)?))
            }
            _ => Shared::Threads(Rc::new(threads)),
        };
        Ok(Self {
            plan,
            storage,
            shared,
            last: Rc::default(),
            queues: Cell::new(0),
            injector: None,
        })
    }

    /// Makes requests go wrong from here on; `pool`, of the calling thread's context, is for those that take long.
    pub fn inject(&mut self, faults: Arc<Faults>, pool: ThreadPool) {
        self.injector = Some(Rc::new(Injector {
            faults,
            storage: Arc::clone(&self.storage),
            pool,
        }));
    }

    /// The engine of one queue.
    pub fn engine(&self) -> Engine {
        let sharing = match &self.shared {
            Shared::Threads(threads) if self.plan.shares() => Some(Sharing::new(Rc::clone(threads))),
            _ => None,
        };
        let number = self.queues.get() + 1;
        self.queues.set(number);
        let engine = Engine {
            number,
            last: Rc::clone(&self.last),
            inline: self.plan.inline.then(|| Inline::new(Arc::clone(&self.storage))),
            sharing,
            shared: self.shared.clone(),
            merger: self.plan.merges().then(|| Merger::new(&self.storage)),
        };
        match &self.injector {
            None => engine,
            Some(injector) => Engine {
                number,
                last: Rc::clone(&self.last),
                inline: None,
                sharing: None,
                shared: Shared::Faulty(Rc::clone(injector), Rc::new(engine)),
                // Each request by itself goes wrong or not.
                merger: None,
            },
        }
    }
}

/// What executes the requests of one queue. IOThread only.
#[derive(Debug)]
pub struct Engine {
    /// Of the queue, among those with the same `last`.
    number: usize,
    last: Rc<Cell<usize>>,
    inline: Option<Inline>,
    sharing: Option<Rc<Sharing>>,
    shared: Shared,
    merger: Option<Merger>,
}

impl Engine {
    /// Merges adjacent requests of a batch: one then stands for several, which come back one by one nevertheless.
    ///
    /// Returns how many requests go with another one.
    pub fn merge(&self, batch: &mut Requests) -> usize {
        let before = batch.len();
        if let Some(merger) = &self.merger {
            merger.merge(batch);
        }
        before - batch.len()
    }

    /// A batch begins. Returns whether the one before, of all queues of this disk on this IOThread, came from here too.
    pub fn begin_batch(&self) -> bool {
        self.last.replace(self.number) == self.number
    }

    /// Leaves the tail of a long batch where a worker may take from it as well, if two are faster than one here. What
    /// the worker does not get is to be [taken back](Self::take_back).
    ///
    /// `completer` gets what the worker finishes later than that.
    pub fn share(&self, batch: &mut Requests, completer: impl FnOnce() -> Rc<dyn Completer>) {
        if let (Some(inline), Some(sharing)) = (&self.inline, &self.sharing)
            && sharing.pays(batch.len(), inline.cost())
        {
            sharing.share(batch, completer());
        }
    }

    /// Moves what the worker has executed to `done`, and some of what nobody has executed to the end of `batch`.
    ///
    /// Returns whether there was anything.
    pub fn take_back(&self, batch: &mut Requests, done: &mut Requests) -> bool {
        self.sharing
            .as_ref()
            .is_some_and(|sharing| sharing.take_back(batch, done))
    }

    /// A worker that was to help is not back yet, though it may have nothing; [`Completer::worker_is_back`] tells of the
    /// end.
    pub fn is_sharing(&self) -> bool {
        self.sharing.as_ref().is_some_and(|sharing| sharing.is_sharing())
    }

    /// Executes some requests of the batch, from index `from` on, if they take no waiting, and moves them to `done`.
    ///
    /// Returns the index at which to go on; when that is the batch's length, what is left is for
    /// [`submit`](Self::submit).
    pub fn try_inline(&self, batch: &mut Requests, from: usize, done: &mut Requests) -> usize {
        match &self.inline {
            Some(inline) => inline.execute(batch, from, done),
            None => batch.len(),
        }
    }

    /// Starts every request of the batch, each with its [`Completer`], and leaves the list empty. To be called in a
    /// defer scope.
    pub fn submit(&self, batch: &mut Requests) {
        match &self.shared {
            Shared::Threads(threads) => threads.submit(batch),
            Shared::IoUring(ring) => ring.submit(batch),
            Shared::Native(ring) => ring.submit(batch),
            Shared::Faulty(injector, engine) => injector.submit(engine, batch),
        }
    }
}
