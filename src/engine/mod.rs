//! How I/O is executed: a batch of requests is handed down, and each comes back to its completer, now or later.
//!
//! An [`Engine`] serves one storage for one queue, on its IOThread. [`Engine::submit`] is the one way in: what takes no
//! waiting is executed during the call, the rest comes back later, on the same IOThread, inside a defer scope.
//!
//! A [`Plan`] says which engine a disk gets, [`Engines`] are what its queues on one IOThread share.

mod error;
mod fault;
mod file;

use std::cell::{Cell, RefCell};
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
use file::channel::{Executor, FileChannel};
use file::inline::Inline;
use file::kernel::KernelEngine;
use file::linux_aio::LinuxAio;
use file::merge::Merger;
use file::plan;
use file::share::Sharing;
use file::threads::ThreadsEngine;
use file::uring::Uring;

/// What the queues of one disk on one IOThread share.
#[derive(Debug)]
pub struct Engines {
    plan: Plan,
    storage: Arc<Storage>,
    executor: Executor,
    /// The number of the queue whose batch was the last one.
    last: Rc<Cell<usize>>,
    queues: Cell<usize>,
    injector: Option<Rc<Injector>>,
}

impl Engines {
    /// Sets up what `plan` asks for, on the context of the calling thread.
    ///
    /// # Errors
    /// The kernel gives no further ring, though it has given one to [`Plan::choose`].
    pub fn new(ctx: &AioContext, plan: Plan, storage: Arc<Storage>, pool: ThreadPool) -> Result<Self, Error> {
        let threads = ThreadsEngine::new(ctx, Arc::clone(&storage), pool);
        let disk = || storage.path().display().to_string();
        let executor = match (plan.executor, storage.fd()) {
            (plan::Executor::IoUring, Some(fd)) => {
                let ring = Uring::new(fd).map_err(Error::IoUring)?;
                Executor::IoUring(Rc::new(KernelEngine::new(ctx, disk(), ring, threads)?))
            }
            (plan::Executor::Native, Some(fd)) => {
                let ring = LinuxAio::new(fd).map_err(Error::Native)?;
                Executor::Native(Rc::new(KernelEngine::new(ctx, disk(), ring, threads)?))
            }
            _ => Executor::Threads(Rc::new(threads)),
        };
        Ok(Self {
            plan,
            storage,
            executor,
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
        let sharing = match &self.executor {
            Executor::Threads(threads) if self.plan.shares() => Some(Sharing::new(Rc::clone(threads))),
            _ => None,
        };
        let number = self.queues.get() + 1;
        self.queues.set(number);
        let file = FileChannel {
            number,
            last: Rc::clone(&self.last),
            inline: self.plan.inline.then(|| Inline::new(Arc::clone(&self.storage))),
            sharing,
            executor: self.executor.clone(),
            merger: self.plan.merges().then(|| Merger::new(&self.storage)),
            done: RefCell::default(),
        };
        Engine {
            file,
            injector: self.injector.clone(),
        }
    }
}

/// What executes the requests of one queue. IOThread only.
#[derive(Debug)]
pub struct Engine {
    file: FileChannel,
    injector: Option<Rc<Injector>>,
}

impl Engine {
    /// Starts every request of the batch, and leaves the list empty. Each comes back to `completer` exactly once: what is
    /// over at once during this call, the rest later. Call it in a defer scope.
    ///
    /// Returns how many requests were executed together with one before them.
    pub fn submit(&self, batch: &mut Requests, completer: &Rc<dyn Completer>) -> usize {
        if let Some(injector) = &self.injector {
            injector.strike(batch, completer);
        }
        self.file.submit(batch, completer)
    }

    /// Returns whether a worker was asked to help with a batch, and is not back. For tests.
    #[doc(hidden)]
    pub fn is_sharing(&self) -> bool {
        self.file.is_sharing()
    }
}
