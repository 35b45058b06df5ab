//! The path of a queue's requests to a file: detect zeroes, merge them, try them without waiting, share them with a worker, and pass
//! the rest on to an executor.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use super::inline::Inline;
use super::kernel::KernelFile;
use super::linux_aio::LinuxAio;
use super::merge::Merger;
use super::share::Sharing;
use super::threads::ThreadsEngine;
use super::uring::Uring;
use crate::affinity::own_cpus;
use crate::aio::busy_wait::Crowd;
use crate::engine::DetectZeroes;
use crate::engine::error::Error;
use crate::engine::plan::{self, Plan};
use crate::engine::resources::{Resources, Turns};
use crate::io::{Completer, Requests};
use crate::storage::RawFile;

/// The executors of requests that the IOThread does not execute itself.
#[derive(Debug)]
enum Executor {
    /// Blocking calls in the IOThread's thread pool.
    Threads(Rc<ThreadsEngine>),
    /// io_uring. The thread pool executes requests that it does not support.
    IoUring(KernelFile<Uring>),
    /// Linux AIO. The thread pool executes requests that it does not support.
    Native(KernelFile<LinuxAio>),
}

impl Executor {
    fn new(resources: &Resources, plan: Plan, file: Arc<RawFile>) -> Result<Self, Error> {
        let threads = Rc::new(ThreadsEngine::new(file, resources.pool().with_share(), || {
            resources.writer()
        }));
        let max_batch = resources.max_batch(plan.max_batch);
        Ok(match plan.executor {
            plan::Executor::IoUring => Self::IoUring(
                KernelFile::new(resources.uring()?, threads, max_batch).map_err(Error::IoUring)?,
            ),
            plan::Executor::Native => {
                Self::Native(KernelFile::new(resources.native()?, threads, max_batch).map_err(Error::Native)?)
            }
            plan::Executor::Nobody
            | plan::Executor::Threads
            | plan::Executor::Socket
            | plan::Executor::Cluster => Self::Threads(threads),
        })
    }

    /// Starts every request of the batch, and empties the list.
    fn submit(&self, batch: &mut Requests) {
        match self {
            Self::Threads(threads) => threads.submit(batch),
            Self::IoUring(ring) => ring.submit(batch),
            Self::Native(ring) => ring.submit(batch),
        }
    }
}

/// The shared state of a file's channels on one IOThread.
#[derive(Debug)]
pub(in crate::engine) struct FileShared {
    plan: Plan,
    file: Arc<RawFile>,
    executor: Executor,
    turns: Rc<Turns>,
    crowd: Crowd,
}

impl FileShared {
    /// Sets up the engine of `plan`, with the resources of the calling thread.
    ///
    /// # Errors
    /// The kernel has no resources for a ring, or the ring has no room for another file.
    pub(in crate::engine) fn new(
        resources: &Resources,
        plan: Plan,
        file: Arc<RawFile>,
    ) -> Result<Rc<Self>, Error> {
        Ok(Rc::new(Self {
            plan,
            executor: Executor::new(resources, plan, Arc::clone(&file))?,
            file,
            turns: Rc::clone(resources.turns()),
            crowd: resources.ctx().crowd(),
        }))
    }

    /// Creates a channel.
    pub(in crate::engine) fn channel(self: Rc<Self>) -> FileChannel {
        FileChannel {
            zeroes: DetectZeroes::Off,
            number: self.turns.number(),
            merger: self.plan.merges().then(|| Merger::new(&self.file)),
            inline: self.plan.inline.then(|| Inline::new(Arc::clone(&self.file))),
            sharing: match &self.executor {
                Executor::Threads(threads) if self.plan.shares() && own_cpus() > 1 => {
                    Some(Sharing::new(Rc::clone(threads)))
                }
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
    /// Identifies the channel among those of the IOThread.
    number: usize,
    zeroes: DetectZeroes,
    merger: Option<Merger>,
    inline: Option<Inline>,
    sharing: Option<Rc<Sharing>>,
    /// Recycled between batches.
    done: RefCell<Requests>,
    shared: Rc<FileShared>,
}

impl FileChannel {
    /// Creates another channel to the same file on the same IOThread.
    pub(in crate::engine) fn sibling(&self) -> Self {
        Rc::clone(&self.shared).channel().with_zero_detection(self.zeroes)
    }

    /// Detects writes of zeroes on this channel, and on siblings made from it.
    pub(in crate::engine) fn with_zero_detection(self, zeroes: DetectZeroes) -> Self {
        Self { zeroes, ..self }
    }

    /// See [`Channel::submit`](crate::engine::Channel::submit).
    pub(in crate::engine) fn submit(&self, batch: &mut Requests, completer: &Rc<dyn Completer>) -> usize {
        let alone = self.shared.turns.take(self.number);
        if self.zeroes != DetectZeroes::Off {
            self.zeroes.apply(batch);
        }
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

    /// Executes requests that need not wait, perhaps with the help of a worker. `alone`: no other queue uses the
    /// IOThread.
    fn execute_here(
        &self,
        inline: &Inline,
        batch: &mut Requests,
        completer: &Rc<dyn Completer>,
        alone: bool,
    ) {
        if let Some(sharing) = &self.sharing
            && !self.shared.crowd.is_dense()
            && sharing.pays(batch.len(), inline.cost())
        {
            sharing.share(batch, completer);
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

    /// Returns whether a worker is still helping with a batch.
    pub(in crate::engine) fn is_sharing(&self) -> bool {
        self.sharing.as_ref().is_some_and(|sharing| sharing.is_sharing())
    }
}
