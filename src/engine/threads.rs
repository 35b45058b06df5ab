//! Blocking calls in the IOThread's thread pool.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use super::inline::Inline;
use super::{IoRequest, Requests};
use crate::aio::AioContext;
use crate::storage::Storage;
use crate::thread_pool::{Outcome, ThreadPool, Work};

/// Every request that the IOThread cannot do without waiting is one piece of work for the pool.
pub struct ThreadsEngine {
    inline: Inline,
    pool: Rc<ThreadPool>,
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
    /// An engine for `storage` on a pool of the calling thread's context.
    pub fn new(storage: &Storage, pool: Rc<ThreadPool>) -> Self {
        Self {
            inline: Inline::new(storage),
            pool,
            works: RefCell::default(),
        }
    }

    /// Like [`ThreadsEngine::new`], but everything goes to the pool, also what would take no waiting.
    pub fn pool_only(pool: Rc<ThreadPool>) -> Self {
        Self {
            inline: Inline::never(),
            pool,
            works: RefCell::default(),
        }
    }

    /// Does what takes no waiting, queues the rest. The batch is left empty.
    pub fn submit(&self, batch: &mut Requests) {
        self.inline.execute(batch);
        if batch.is_empty() {
            return;
        }
        let mut works = self.works.take();
        works.extend(batch.drain(..).map(|request| request as Box<dyn Work>));
        self.pool.submit_batch(&mut works);
        self.works.replace(works);
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
