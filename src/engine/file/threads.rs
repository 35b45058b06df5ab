//! Blocking calls in the IOThread's thread pool.
//!
//! Writes that take turns (see [`RawFile::writes_take_turns`]) have a worker of their own: with more, all but one would
//! fight for the file's lock, burning CPU time, and be missing for reads. (The kernel's own workers for io_uring do the
//! same.)

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use super::writers::Writer;
use crate::engine::job::Jobs;
use crate::io::{IoOp, IoRequest, Requests};
use crate::storage::RawFile;
use crate::thread_pool::{ThreadPool, Work};

/// Every request is one job for the pool.
pub(super) struct ThreadsEngine {
    pool: ThreadPool,
    jobs: Rc<Jobs<RawFile>>,
    /// For writes that take turns.
    writer: Option<Writer>,
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
    /// An engine for `file` on the pool of the calling thread; `writer` makes another one, for writes that take turns.
    pub(super) fn new(file: Arc<RawFile>, pool: ThreadPool, writer: impl FnOnce() -> Writer) -> Self {
        Self {
            writer: file.writes_take_turns().then(writer),
            jobs: Jobs::new(file),
            pool,
            works: RefCell::default(),
        }
    }

    pub(super) fn file(&self) -> &Arc<RawFile> {
        self.jobs.executor()
    }

    /// Queues the batch, which is left empty.
    pub(super) fn submit(&self, batch: &mut Requests) {
        let mut works = self.works.take();
        if let Some(writer) = &self.writer {
            let writes = batch.extract_if(.., |request| request.op == IoOp::Write { durable: false });
            works.extend(writes.map(|request| self.jobs.job(request)));
            if !works.is_empty() {
                writer.pool().submit_batch(&mut works);
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
