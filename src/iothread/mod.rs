//! IOThreads that serve disks: an event loop, and the resources that its disks share.

use std::rc::Rc;
use std::sync::{Arc, mpsc};

use crate::aio::{self, AioContext, AioHandle, Gone, IoThreadConfig, Remote};
use crate::engine::Resources;
use crate::thread_pool::{Spawner, ThreadPool, ThreadPoolParams};

mod figures;

pub use figures::IoThreadFigures;

/// The settings of IOThreads.
#[derive(Clone, Debug, Default)]
pub struct IoThreadParams {
    /// See [`IoThreadConfig`].
    pub config: IoThreadConfig,
    /// Limits of the thread pool.
    pub thread_pool: ThreadPoolParams,
    /// Creates the workers of the pool.
    pub spawner: Spawner,
    /// Maximum number of requests in one submission to the kernel; 0 for no maximum.
    pub max_batch: u64,
}

/// An IOThread. Dropping it ends the thread. All disks that the thread serves must have been dropped before.
#[derive(Debug)]
pub struct IoThread {
    // Dropped before the thread, because it is released there.
    resources: Remote<Resources>,
    thread: aio::IoThread,
    figures: Arc<IoThreadFigures>,
}

impl IoThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// The thread or its event loop cannot be created.
    pub fn spawn(name: &str, params: &IoThreadParams) -> Result<Self, aio::Error> {
        let thread = aio::IoThread::spawn(name, params.config)?;
        let IoThreadParams {
            thread_pool,
            spawner,
            max_batch,
            ..
        } = params.clone();
        let (reply, made) = mpsc::channel();
        let make = move |ctx: &AioContext| {
            let pool = ThreadPool::with_spawner(ctx, thread_pool, spawner, ThreadPool::IDLE_TIME);
            let figures = pool.figures();
            let resources = Resources::new(ctx, pool);
            resources.set_max_batch(max_batch);
            // Cannot fail: the creator waits for the answer.
            let _ = reply.send((Remote::new(ctx, resources), figures));
        };
        thread.handle().run_on_context(make)?;
        let (resources, pools) = made.recv().map_err(|_| aio::Error::ContextGone)?;
        let figures = Arc::new(IoThreadFigures {
            thread_id: thread.thread_id(),
            waits: thread.handle().figures(),
            pools,
        });
        Ok(Self {
            resources,
            thread,
            figures,
        })
    }

    /// Runs `f` on the IOThread and waits for its result. Any thread but the IOThread itself.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn call<R: Send + 'static>(
        &self,
        f: impl FnOnce(&Rc<Resources>) -> R + Send + 'static,
    ) -> Result<R, Gone> {
        self.resources.call(f)
    }

    /// Changes the settings while the thread runs, all but the spawner. Does not wait for it.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn adapt(&self, params: &IoThreadParams) -> Result<(), Gone> {
        let IoThreadParams {
            config,
            thread_pool,
            max_batch,
            ..
        } = *params;
        self.resources.post(move |resources| {
            resources.ctx().set_poll_max(config.poll_max);
            resources.pool().update_params(thread_pool);
            resources.set_max_batch(max_batch);
        })
    }

    /// Returns the thread's figures.
    #[must_use]
    pub fn figures(&self) -> &Arc<IoThreadFigures> {
        &self.figures
    }

    /// Returns the handle through which other threads reach the event loop.
    #[must_use]
    pub fn handle(&self) -> AioHandle {
        self.thread.handle()
    }

    /// Returns the kernel's thread id (`gettid`), for pinning the thread to CPUs.
    #[must_use]
    pub fn thread_id(&self) -> i32 {
        self.thread.thread_id()
    }
}
