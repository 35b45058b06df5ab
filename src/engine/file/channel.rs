//! The path of a queue's requests to a file: execute what need not wait, and pass the rest on to an executor.

use std::rc::Rc;
use std::sync::Arc;

use super::front::{Front, FrontShared};
use super::kernel::KernelFile;
use super::linux_aio::LinuxAio;
use super::pins::{PinnedMemory, Pins};
use super::threads::ThreadsEngine;
use super::uring::Uring;
use crate::engine::DetectZeroes;
use crate::engine::error::Error;
use crate::engine::plan::{self, Plan};
use crate::engine::resources::Resources;
use crate::io::{Completer, Requests};
use crate::memory::GuestMemory;
use crate::storage::RawFile;

/// The executors of requests that the IOThread does not execute itself.
#[derive(Debug)]
enum Executor {
    /// Blocking calls in the IOThread's thread pool.
    Threads(Rc<ThreadsEngine<RawFile>>),
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
    executor: Executor,
    front: FrontShared<RawFile>,
    /// Registers guest memory.
    pins: Option<Rc<Pins>>,
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
        let executor = Executor::new(resources, plan, Arc::clone(&file))?;
        let pins = match plan.registers_memory {
            true => Some(resources.pins()?),
            false => None,
        };
        let threads = match &executor {
            Executor::Threads(threads) => Some(Rc::clone(threads)),
            _ => None,
        };
        Ok(Rc::new(Self {
            executor,
            pins,
            front: FrontShared::new(resources, plan, file, threads),
        }))
    }

    /// Creates a channel.
    pub(in crate::engine) fn channel(self: Rc<Self>) -> FileChannel {
        FileChannel {
            front: self.front.front(),
            shared: self,
        }
    }
}

/// A channel of one queue. IOThread only.
#[derive(Debug)]
pub(in crate::engine) struct FileChannel {
    front: Front<RawFile>,
    shared: Rc<FileShared>,
}

impl FileChannel {
    /// Creates another channel to the same file on the same IOThread.
    pub(in crate::engine) fn sibling(&self) -> Self {
        let zeroes = self.front.zero_detection();
        Rc::clone(&self.shared).channel().with_zero_detection(zeroes)
    }

    /// Detects writes of zeroes on this channel, and on siblings made from it.
    pub(in crate::engine) fn with_zero_detection(self, zeroes: DetectZeroes) -> Self {
        Self {
            front: self.front.with_zero_detection(zeroes),
            ..self
        }
    }

    /// See [`Channel::submit`](crate::engine::Channel::submit).
    pub(in crate::engine) fn submit(&self, batch: &mut Requests, completer: &Rc<dyn Completer>) -> usize {
        self.front
            .submit(batch, completer, |rest| self.shared.executor.submit(rest))
    }

    /// See [`Channel::pin`](crate::engine::Channel::pin).
    pub(in crate::engine) fn pin(&self, memory: &GuestMemory) -> Option<PinnedMemory> {
        self.shared.pins.as_ref().map(|pins| pins.pin(memory))
    }

    /// See [`Channel::shares`](crate::engine::Channel::shares).
    pub(in crate::engine) fn shares(&self) -> bool {
        self.front.shares()
    }

    /// Returns whether a worker is still helping with a batch.
    pub(in crate::engine) fn is_sharing(&self) -> bool {
        self.front.is_sharing()
    }
}
