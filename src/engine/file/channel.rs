//! One queue's way to a file on one IOThread: merge, try without waiting, share with a worker, hand over the rest.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::inline::Inline;
use super::kernel::KernelEngine;
use super::linux_aio::LinuxAio;
use super::merge::Merger;
use super::share::Sharing;
use super::threads::ThreadsEngine;
use super::uring::Uring;
use crate::io::{Completer, Requests};

/// The closed set of executors: who executes what the IOThread does not.
#[derive(Clone, Debug)]
pub(in crate::engine) enum Executor {
    /// Blocking calls in the IOThread's thread pool.
    Threads(Rc<ThreadsEngine>),
    /// io_uring; what it does not take is for the pool.
    IoUring(Rc<KernelEngine<Uring>>),
    /// Linux AIO; what it does not take is for the pool.
    Native(Rc<KernelEngine<LinuxAio>>),
}

impl Executor {
    /// Starts every request of the batch, which is left empty.
    fn submit(&self, batch: &mut Requests) {
        match self {
            Self::Threads(threads) => threads.submit(batch),
            Self::IoUring(ring) => ring.submit(batch),
            Self::Native(ring) => ring.submit(batch),
        }
    }
}

/// A channel of one queue. IOThread only.
#[derive(Debug)]
pub(in crate::engine) struct FileChannel {
    /// Of the queue, among those with the same `last`.
    pub(in crate::engine) number: usize,
    /// The number of the queue whose batch was the last one.
    pub(in crate::engine) last: Rc<Cell<usize>>,
    pub(in crate::engine) merger: Option<Merger>,
    pub(in crate::engine) inline: Option<Inline>,
    pub(in crate::engine) sharing: Option<Rc<Sharing>>,
    pub(in crate::engine) executor: Executor,
    /// Recycled between batches.
    pub(in crate::engine) done: RefCell<Requests>,
}

impl FileChannel {
    /// See [`Engine::submit`](crate::engine::Engine::submit).
    pub(in crate::engine) fn submit(&self, batch: &mut Requests, completer: &Rc<dyn Completer>) -> usize {
        let alone = self.last.replace(self.number) == self.number;
        let before = batch.len();
        if let Some(merger) = &self.merger {
            merger.merge(batch);
        }
        let merged = before - batch.len();
        if let Some(inline) = &self.inline {
            self.execute_here(inline, batch, completer, alone);
        }
        if !batch.is_empty() {
            for request in batch.iter_mut() {
                request.set_completer(Rc::clone(completer));
            }
            self.executor.submit(batch);
        }
        merged
    }

    /// Executes what takes no waiting, maybe with the help of a worker. `alone`: no other queue has the IOThread busy.
    fn execute_here(
        &self,
        inline: &Inline,
        batch: &mut Requests,
        completer: &Rc<dyn Completer>,
        alone: bool,
    ) {
        if let Some(sharing) = &self.sharing
            && sharing.pays(batch.len(), inline.cost())
        {
            sharing.share(batch, Rc::clone(completer));
        }
        let (mut done, mut next) = (self.done.take(), 0);
        loop {
            while next < batch.len() {
                next = inline.execute(batch, next, &mut done);
                completer.complete_batch(&mut done, alone && next < batch.len());
            }
            let Some(sharing) = &self.sharing else { break };
            if !sharing.take_back(batch, &mut done) {
                break;
            }
            completer.complete_batch(&mut done, false);
        }
        self.done.replace(done);
    }

    pub(in crate::engine) fn is_sharing(&self) -> bool {
        self.sharing.as_ref().is_some_and(|sharing| sharing.is_sharing())
    }
}
