//! IOThreads that serve disks: an event loop, and what the disks on it share.

use std::rc::Rc;
use std::sync::mpsc;

use crate::aio::{self, AioContext, AioHandle, Gone, IoThreadConfig, Remote};
use crate::engine::Resources;
use crate::thread_pool::{Spawner, ThreadPool, ThreadPoolParams};

/// How IOThreads are made.
#[derive(Clone, Debug, Default)]
pub struct IoThreadParams {
    /// See [`IoThreadConfig`].
    pub config: IoThreadConfig,
    /// Limits of the thread pool.
    pub thread_pool: ThreadPoolParams,
    /// Creates the workers of the pool.
    pub spawner: Spawner,
}

/// An IOThread. Dropping it ends the thread, after all disks that it serves have been dropped.
#[derive(Debug)]
pub struct IoThread {
    // Before the thread, on which it is released.
    resources: Remote<Resources>,
    thread: aio::IoThread,
}

impl IoThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// The operating system gives no thread, or no descriptors for its event loop.
    pub fn spawn(name: &str, params: &IoThreadParams) -> Result<Self, aio::Error> {
        let thread = aio::IoThread::spawn(name, params.config)?;
        let IoThreadParams {
            thread_pool, spawner, ..
        } = params.clone();
        let (reply, made) = mpsc::channel();
        let make = move |ctx: &AioContext| {
            let pool = ThreadPool::with_spawner(ctx, thread_pool, spawner, ThreadPool::IDLE_TIME);
            // The creator waits for it.
            let _ = reply.send(Remote::new(ctx, Resources::new(ctx, pool)));
        };
        thread.handle().run_on_context(make)?;
        let resources = made.recv().map_err(|_| aio::Error::ContextGone)?;
        Ok(Self { resources, thread })
    }

    /// Runs `f` on the thread and waits for its result. Any other thread.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn call<R: Send + 'static>(
        &self,
        f: impl FnOnce(&Rc<Resources>) -> R + Send + 'static,
    ) -> Result<R, Gone> {
        self.resources.call(f)
    }

    /// What other threads talk to its event loop with.
    #[must_use]
    pub fn handle(&self) -> AioHandle {
        self.thread.handle()
    }

    /// The kernel's thread id (`gettid`), for pinning it to CPUs.
    #[must_use]
    pub fn thread_id(&self) -> i32 {
        self.thread.thread_id()
    }
}
