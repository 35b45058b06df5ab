//! Blocking calls in the IOThread's thread pool.
//!
//! Writes that exclude each other (see [`TryExecute::writes_take_turns`]) are executed by a single worker of their own. If
//! there were more, all but one would spin for the file's lock and be missing for reads. (The kernel does the same for
//! io_uring.)

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use super::writers::Writer;
use crate::engine::job::{Jobs, TryExecute};
use crate::io::{IoOp, IoRequest, Requests};
use crate::thread_pool::{ThreadPool, Work, WorkId};

/// An engine in which every request is a job for the thread pool.
pub(in crate::engine) struct ThreadsEngine<E> {
    pool: ThreadPool,
    jobs: Rc<Jobs<E>>,
    /// The worker for writes that exclude each other.
    writer: Option<Writer>,
    /// An empty list, kept for its capacity.
    works: RefCell<Vec<Box<dyn Work>>>,
}

impl<E> fmt::Debug for ThreadsEngine<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadsEngine")
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

impl<E: TryExecute> ThreadsEngine<E> {
    /// Creates an engine for `disk` on the calling thread's `pool`. `writer` creates the worker for writes, if one is
    /// needed.
    pub(in crate::engine) fn new(disk: Arc<E>, pool: ThreadPool, writer: impl FnOnce() -> Writer) -> Self {
        Self {
            writer: disk.writes_take_turns().then(writer),
            jobs: Jobs::new(disk),
            pool,
            works: RefCell::default(),
        }
    }

    pub(in crate::engine) fn disk(&self) -> &Arc<E> {
        self.jobs.executor()
    }

    /// Queues the batch, and empties the list.
    pub(in crate::engine) fn submit(&self, batch: &mut Requests) {
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

    /// Queues another kind of work.
    pub(super) fn submit_work(&self, work: Box<dyn Work>) -> WorkId {
        self.pool.submit(work)
    }

    /// Cancels a work that no worker has taken.
    pub(super) fn cancel(&self, work: WorkId) {
        self.pool.cancel(work);
    }

    /// Queues one request.
    pub(super) fn submit_one(&self, request: Box<IoRequest>) {
        self.pool.submit(self.jobs.job(request));
    }
}
