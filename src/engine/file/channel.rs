//! One queue's way to a file on one IOThread: merge, try without waiting, share with a worker, hand over the rest.

use std::cell::{Cell, RefCell};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;

use super::inline::Inline;
use super::kernel::KernelEngine;
use super::linux_aio::LinuxAio;
use super::merge::Merger;
use super::share::Sharing;
use super::threads::ThreadsEngine;
use super::uring::Uring;
use crate::aio::AioContext;
use crate::engine::error::Error;
use crate::engine::plan::{self, Plan};
use crate::io::{Completer, Requests};
use crate::storage::RawFile;
use crate::thread_pool::ThreadPool;

/// The closed set of executors: who executes what the IOThread does not.
#[derive(Debug)]
enum Executor {
    /// Blocking calls in the IOThread's thread pool.
    Threads(Rc<ThreadsEngine>),
    /// io_uring; what it does not take is for the pool.
    IoUring(KernelEngine<Uring>),
    /// Linux AIO; what it does not take is for the pool.
    Native(KernelEngine<LinuxAio>),
}

impl Executor {
    fn new(ctx: &AioContext, plan: Plan, file: &Arc<RawFile>, pool: ThreadPool) -> Result<Self, Error> {
        let threads = ThreadsEngine::new(ctx, Arc::clone(file), pool);
        let disk = || file.path().display().to_string();
        Ok(match plan.executor {
            plan::Executor::IoUring => {
                let ring = Uring::new(file.as_fd()).map_err(Error::IoUring)?;
                Self::IoUring(KernelEngine::new(ctx, disk(), ring, threads)?)
            }
            plan::Executor::Native => {
                let ring = LinuxAio::new(file.as_fd()).map_err(Error::Native)?;
                Self::Native(KernelEngine::new(ctx, disk(), ring, threads)?)
            }
            plan::Executor::Nobody | plan::Executor::Threads => Self::Threads(Rc::new(threads)),
        })
    }

    /// Starts every request of the batch, which is left empty.
    fn submit(&self, batch: &mut Requests) {
        match self {
            Self::Threads(threads) => threads.submit(batch),
            Self::IoUring(ring) => ring.submit(batch),
            Self::Native(ring) => ring.submit(batch),
        }
    }
}

/// What the channels to a file on one IOThread share.
#[derive(Debug)]
pub(in crate::engine) struct FileShared {
    plan: Plan,
    file: Arc<RawFile>,
    executor: Executor,
    /// The number of the channel whose batch was the last one.
    last: Cell<usize>,
    channels: Cell<usize>,
}

impl FileShared {
    /// Sets up what `plan` asks for, on the context of the calling thread.
    ///
    /// # Errors
    /// The kernel has no resources for another ring.
    pub(in crate::engine) fn new(
        ctx: &AioContext,
        plan: Plan,
        file: Arc<RawFile>,
        pool: ThreadPool,
    ) -> Result<Rc<Self>, Error> {
        Ok(Rc::new(Self {
            plan,
            executor: Executor::new(ctx, plan, &file, pool)?,
            file,
            last: Cell::new(0),
            channels: Cell::new(0),
        }))
    }

    /// Makes a channel.
    pub(in crate::engine) fn channel(self: Rc<Self>) -> FileChannel {
        let number = self.channels.get() + 1;
        self.channels.set(number);
        FileChannel {
            number,
            merger: self.plan.merges().then(|| Merger::new(&self.file)),
            inline: self.plan.inline.then(|| Inline::new(Arc::clone(&self.file))),
            sharing: match &self.executor {
                Executor::Threads(threads) if self.plan.shares() => Some(Sharing::new(Rc::clone(threads))),
                _ => None,
            },
            done: RefCell::default(),
            shared: self,
        }
    }
}

/// A channel of one queue. IOThread only.
#[derive(Debug)]
pub(in crate::engine) struct FileChannel {
    /// Which of those that share `shared`.
    number: usize,
    merger: Option<Merger>,
    inline: Option<Inline>,
    sharing: Option<Rc<Sharing>>,
    /// Recycled between batches.
    done: RefCell<Requests>,
    shared: Rc<FileShared>,
}

impl FileChannel {
    /// Makes another channel to the same file on the same IOThread.
    pub(in crate::engine) fn sibling(&self) -> Self {
        Rc::clone(&self.shared).channel()
    }

    /// See [`Channel::submit`](crate::engine::Channel::submit).
    pub(in crate::engine) fn submit(&self, batch: &mut Requests, completer: &Rc<dyn Completer>) -> usize {
        let alone = self.shared.last.replace(self.number) == self.number;
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
            self.shared.executor.submit(batch);
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

    /// Returns whether a worker was asked to help with a batch, and is not back.
    pub(in crate::engine) fn is_sharing(&self) -> bool {
        self.sharing.as_ref().is_some_and(|sharing| sharing.is_sharing())
    }
}
