//! Blocking calls in the IOThread's thread pool.
//!
//! Writes that take turns (see [`Storage::writes_take_turns`]) have a worker of their own: with more, all but one would
//! fight for the file's lock, burning CPU time, and be missing for reads. (The kernel's own workers for io_uring do the
//! same.)

use std::cell::RefCell;
use std::io;

use super::{IoOp, IoRequest, Requests};
use crate::aio::AioContext;
use crate::storage::Storage;
use crate::thread_pool::{Outcome, ThreadPool, Work};

/// Every request is one piece of work for the pool.
pub(super) struct ThreadsEngine {
    pool: ThreadPool,
    /// For writes that take turns.
    writer: Option<ThreadPool>,
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
    pub(super) fn new(ctx: &AioContext, storage: &Storage, pool: ThreadPool) -> Self {
        Self {
            writer: storage.writes_take_turns().then(|| pool.serial_sibling(ctx)),
            pool,
            works: RefCell::default(),
        }
    }

    /// Queues the batch, which is left empty.
    pub(super) fn submit(&self, batch: &mut Requests) {
        let mut works = self.works.take();
        if let Some(writer) = &self.writer {
            let writes = batch.extract_if(.., |request| request.op == IoOp::Write { durable: false });
            works.extend(writes.map(|request| request as Box<dyn Work>));
            if !works.is_empty() {
                writer.submit_batch(&mut works);
            }
        }
        works.extend(batch.drain(..).map(|request| request as Box<dyn Work>));
        if !works.is_empty() {
            self.pool.submit_batch(&mut works);
        }
        self.works.replace(works);
    }

    /// Queues work of another kind.
    pub(super) fn submit_work(&self, work: Box<dyn Work>) {
        self.pool.submit(work);
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
            Outcome::Cancelled => self.set_results(|| Err(io::Error::from_raw_os_error(libc::ECANCELED))),
            Outcome::Panicked => self.set_results(|| Err(io::Error::from_raw_os_error(libc::EIO))),
        }
        self.finish();
    }
}
