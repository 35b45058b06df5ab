//! How I/O is executed: a request is handed down, and comes back to whoever handed it down.
//!
//! An [`Engine`] serves one storage for one queue, on its IOThread. [`Engine::submit`] takes a batch of requests; each
//! comes back exactly once, on the same IOThread, through the [`Completer`] it carries, inside a defer scope. Nothing
//! assumes that it took a thread: a request may be back before `submit` returns.
//!
//! A [`Plan`] says which engine a disk gets, [`Engines`] are what its queues on one IOThread share.

mod error;
mod fault;
mod inject;
mod inline;
mod kernel;
mod linux_aio;
mod plan;
mod request;
mod threads;
mod uring;

use std::rc::Rc;
use std::sync::Arc;

pub use error::Error;
pub use fault::{FaultRule, Faults};
pub use plan::{Choice, Plan};
pub use request::{Completer, IoOp, IoRange, IoRequest};

use crate::aio::AioContext;
use crate::storage::Storage;
use crate::thread_pool::ThreadPool;
use inject::Injector;
use inline::Inline;
use kernel::KernelEngine;
use linux_aio::LinuxAio;
use plan::Executor;
use threads::ThreadsEngine;
use uring::Uring;

/// Requests on their way. Boxed, because they move on one by one and are recycled.
#[allow(clippy::vec_box, reason = "each box is handed on as it is")]
pub type Requests = Vec<Box<IoRequest>>;

/// What the queues of one disk on one IOThread share.
#[derive(Debug)]
pub struct Engines {
    plan: Plan,
    storage: Arc<Storage>,
    shared: Shared,
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
        let threads = ThreadsEngine::new(ctx, &storage, pool);
        let shared = match (plan.executor, storage.fd()) {
            (Executor::IoUring, Some(fd)) => {
                let ring = Uring::new(fd).map_err(Error::IoUring)?;
                Shared::IoUring(Rc::new(KernelEngine::new(ctx, ring, threads)?))
            }
            (Executor::Native, Some(fd)) => {
                let ring = LinuxAio::new(fd).map_err(Error::Native)?;
                Shared::Native(Rc::new(KernelEngine::new(ctx, ring, threads)?))
            }
            _ => Shared::Threads(Rc::new(threads)),
        };
        Ok(Self {
            plan,
            storage,
            shared,
            injector: None,
        })
    }

    /// Makes requests go wrong from here on; `pool`, of the calling thread's context, is for those that take long.
    pub fn inject(&mut self, faults: Arc<Faults>, pool: ThreadPool) {
        self.injector = Some(Rc::new(Injector { faults, pool }));
    }

    /// The engine of one queue.
    pub fn engine(&self) -> Engine {
        let engine = Engine {
            inline: self.plan.inline.then(|| Inline::new(&self.storage)),
            shared: self.shared.clone(),
        };
        match &self.injector {
            None => engine,
            Some(injector) => Engine {
                inline: None,
                shared: Shared::Faulty(Rc::clone(injector), Rc::new(engine)),
            },
        }
    }
}

/// What executes the requests of one queue. IOThread only.
#[derive(Debug)]
pub struct Engine {
    inline: Option<Inline>,
    shared: Shared,
}

impl Engine {
    /// Starts every request of the batch, and leaves the list empty. To be called in a defer scope.
    pub fn submit(&self, batch: &mut Requests) {
        if let Some(inline) = &self.inline {
            inline.execute(batch);
        }
        if batch.is_empty() {
            return;
        }
        match &self.shared {
            Shared::Threads(threads) => threads.submit(batch),
            Shared::IoUring(ring) => ring.submit(batch),
            Shared::Native(ring) => ring.submit(batch),
            Shared::Faulty(injector, engine) => injector.submit(engine, batch),
        }
    }
}
