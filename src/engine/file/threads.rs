//! Blocking calls in the IOThread's thread pool.
//!
//! Writes that take turns (see [`Storage::writes_take_turns`]) have a worker of their own: with more, all but one would
//! fight for the file's lock, burning CPU time, and be missing for reads. (The kernel's own workers for io_uring do the
//! same.)

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use super::job::Jobs;
use crate::aio::AioContext;
use crate::io::{IoOp, IoRequest, Requests};
use crate::storage::Storage;
use crate::thread_pool::{ThreadPool, Work};

/// Every request is one job for the pool.
pub(in crate::engine) struct ThreadsEngine {
    pool: ThreadPool,
    jobs: Rc<Jobs>,
    /// For writes that take turns.
    writer: Option<ThreadPool>,
    /// Recycled between batches.
    works: RefCell<Vec<Box<dyn Work>>>,
}

impl fmt::Debug for ThreadsEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadsEngine")
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

impl ThreadsEngine {
    /// An engine for `storage` on a pool of the calling thread's context.
    pub(in crate::engine) fn new(ctx: &AioContext, storage: Arc<Storage>, pool: ThreadPool) -> Self {
        Self {
            writer: storage.writes_take_turns().then(|| pool.serial_sibling(ctx)),
            jobs: Jobs::new(storage),
            pool,
            works: RefCell::default(),
        }
    }

    pub(super) fn storage(&self) -> &Arc<Storage> {
        self.jobs.storage()
    }

    /// Queues the batch, which is left empty.
    pub(in crate::engine) fn submit(&self, batch: &mut Requests) {
        let mut works = self.works.take();
        if let Some(writer) = &self.writer {
            let writes = batch.extract_if(.., |request| request.op == IoOp::Write { durable: false });
            works.extend(writes.map(|request| self.jobs.job(request)));
            if !works.is_empty() {
                writer.submit_batch(&mut works);
            }
        }
        works.extend(batch.drain(..).map(|request| self.jobs.job(request)));
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
        self.pool.submit(self.jobs.job(request));
    }
}
