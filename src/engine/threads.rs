//! Blocking calls in the IOThread's thread pool.

use std::cell::RefCell;
use std::io;

use super::{IoRequest, Requests};
use crate::aio::AioContext;
use crate::thread_pool::{Outcome, ThreadPool, Work};

/// Every request is one piece of work for the pool.
pub(super) struct ThreadsEngine {
    pool: ThreadPool,
    /// Recycled between batches.
    works: RefCell<Vec<Box<dyn Work>>>,
}

impl std::fmt::Debug for ThreadsEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ThreadsEngine")
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

impl ThreadsEngine {
    /// An engine on a pool of the calling thread's context.
    pub(super) fn new(pool: ThreadPool) -> Self {
        Self {
            pool,
            works: RefCell::default(),
        }
    }

    /// Queues the batch, which is left empty.
    pub(super) fn submit(&self, batch: &mut Requests) {
        let mut works = self.works.take();
        works.extend(batch.drain(..).map(|request| request as Box<dyn Work>));
        self.pool.submit_batch(&mut works);
        self.works.replace(works);
    }

    /// Queues one request.
    pub(super) fn submit_one(&self, request: Box<IoRequest>) {
        self.pool.submit(request);
    }
}

impl Work for IoRequest {
    fn run(&mut self) {
        self.execute();
    }

    fn complete(mut self: Box<Self>, _ctx: &AioContext, outcome: Outcome) {
        match outcome {
            Outcome::Done => {}
            Outcome::Cancelled => self.result = Err(io::Error::from_raw_os_error(libc::ECANCELED)),
            Outcome::Panicked => self.result = Err(io::Error::from_raw_os_error(libc::EIO)),
        }
        self.finish();
    }
}
