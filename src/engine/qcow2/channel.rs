//! The channel of a queue to a qcow2 disk. IOThread only.

use std::cell::Cell;
use std::fmt;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use super::disk::Qcow2Disk;
use crate::aio::{AioContext, Timer};
use crate::engine::DetectZeroes;
use crate::engine::file::front::{Front, FrontShared};
use crate::engine::file::threads::ThreadsEngine;
use crate::engine::plan::Plan;
use crate::engine::resources::Resources;
use crate::io::{Completer, Requests};
use crate::thread_pool::{Outcome, ThreadPool, Work};

/// The shared state of a disk's channels on one IOThread.
struct Shared {
    front: FrontShared<Qcow2Disk>,
    threads: Rc<ThreadsEngine<Qcow2Disk>>,
    /// The pool of the IOThread, which exists longer than this disk's share of it.
    pool: ThreadPool,
    /// Rings when unused tables are given up.
    cleaner: Cell<Option<Timer>>,
}

/// A channel: reads and writes whose tables and data are in memory are executed here, and all others in the thread
/// pool.
pub(in crate::engine) struct Qcow2Channel {
    front: Front<Qcow2Disk>,
    shared: Rc<Shared>,
}

/// Gives up unused tables. A job for a worker.
struct Clean(Arc<Qcow2Disk>);

impl Work for Clean {
    fn run(&mut self) {
        self.0.clean();
    }

    fn is_awaited(&self) -> bool {
        false
    }

    fn complete(self: Box<Self>, _ctx: &AioContext, _outcome: Outcome) {}
}

impl Shared {
    fn new(resources: &Resources, plan: Plan, disk: &Arc<Qcow2Disk>) -> Rc<Self> {
        let pool = resources.pool().with_share();
        let threads = Rc::new(ThreadsEngine::new(Arc::clone(disk), pool, || resources.writer()));
        let shared = Rc::new(Self {
            front: FrontShared::new(resources, plan, Arc::clone(disk), Some(Rc::clone(&threads))),
            threads,
            pool: resources.pool().clone(),
            cleaner: Cell::default(),
        });
        if disk.clean_interval().is_some() {
            let weak = Rc::downgrade(&shared);
            shared.arm(resources.ctx().timer(move || Self::clean(&weak)));
        }
        shared
    }

    fn arm(&self, timer: Timer) {
        if let Some(interval) = self.threads.disk().clean_interval() {
            timer.arm_in(interval);
        }
        self.cleaner.set(Some(timer));
    }

    fn clean(weak: &Weak<Self>) {
        let Some(shared) = weak.upgrade() else { return };
        let disk = Arc::clone(shared.threads.disk());
        shared.pool.submit(Box::new(Clean(disk)));
        if let Some(timer) = shared.cleaner.take() {
            shared.arm(timer);
        }
    }
}

impl Qcow2Channel {
    /// Makes a channel with the resources of the calling thread.
    pub(in crate::engine) fn new(resources: &Resources, plan: Plan, disk: &Arc<Qcow2Disk>) -> Self {
        Self::of(Shared::new(resources, plan, disk))
    }

    fn of(shared: Rc<Shared>) -> Self {
        Self {
            front: shared.front.front(),
            shared,
        }
    }

    /// Detects writes of zeroes on this channel, and on siblings made from it.
    pub(in crate::engine) fn with_zero_detection(self, zeroes: DetectZeroes) -> Self {
        Self {
            front: self.front.with_zero_detection(zeroes),
            ..self
        }
    }

    pub(in crate::engine) fn sibling(&self) -> Self {
        Self::of(Rc::clone(&self.shared)).with_zero_detection(self.front.zero_detection())
    }

    /// See [`Channel::submit`](crate::engine::Channel::submit).
    pub(in crate::engine) fn submit(&self, batch: &mut Requests, completer: &Rc<dyn Completer>) -> usize {
        self.front
            .submit(batch, completer, |rest| self.shared.threads.submit(rest))
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

impl fmt::Debug for Qcow2Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Qcow2Channel")
            .field("disk", self.shared.threads.disk())
            .finish_non_exhaustive()
    }
}
