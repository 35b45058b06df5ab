//! A virtio-blk disk as the control thread sees it: its configuration, its state, and handles to its queues.

use std::borrow::Borrow;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::config::{BlkConfig, ConfigError};
use super::error_policy::ErrorPolicy;
pub use super::facts::DiskFacts;
use super::failures::Failures;
use super::handle::DiskHandle;
pub use super::image_lock::TakeError;
use super::queue::BlkQueue;
use super::request::ID_LEN;
use super::shard::{Created, Route, Shard};
pub use super::state::DeviceState;
use super::stats::QueueStats;
use super::write_cache::WriteCache;
use crate::aio::{Gone, Remote};
use crate::engine::{self, DiskView, Faults, NodeControl, Plan, Resources};
use crate::guard;
use crate::io::IoOp;
use crate::iothread::IoThread;
use crate::storage::Limits;
use crate::throttle::Group;

/// The parameters of a disk.
#[derive(Clone, Debug)]
pub struct DeviceParams {
    /// The disk's name in messages: the image's path.
    pub name: String,
    /// Serial number, as `/sys/block/vda/serial` shows it.
    pub serial: [u8; ID_LEN],
    /// Number of queues, at least 1.
    pub num_queues: u16,
    /// Maximum queue size.
    pub queue_size: u16,
    /// The limits that the disk announces: those of its node, or less.
    pub limits: Limits,
    /// Every write is stable before it completes, and the driver has nothing to flush.
    pub write_through: bool,
    /// How I/O is executed.
    pub engine: Plan,
    /// The IOThread of each queue, as an index into the `iothreads` of [`BlkDevice::new`].
    pub queue_iothreads: Vec<u16>,
    /// Notifications are coalesced, until this is switched.
    pub batch_notifications: bool,
    /// How to deal with requests that fail.
    pub error_policy: ErrorPolicy,
    /// Faults to inject.
    pub faults: Option<Arc<Faults>>,
    /// Throughput limits, which other disks may share.
    pub throttle: Option<Arc<Group>>,
}

/// A disk, which belongs to one control thread.
#[derive(Debug)]
pub struct BlkDevice {
    state: Arc<DeviceState>,
    config: BlkConfig,
    cache: WriteCache,
    handle: Arc<DiskHandle>,
    queues: Vec<Remote<BlkQueue>>,
    stats: Vec<Arc<QueueStats>>,
}

impl BlkDevice {
    /// Creates a disk with queues on `iothreads`.
    ///
    /// # Errors
    /// An IOThread has ended, or the engine is not available on it.
    ///
    /// # Panics
    /// If `iothreads` is empty, or a queue's IOThread is not among them.
    pub fn new(
        below: impl Into<DiskView>,
        params: DeviceParams,
        iothreads: &[impl Borrow<IoThread>],
    ) -> Result<Self, CreateError> {
        guard::install().map_err(CreateError::Signal)?;
        let config = BlkConfig {
            limits: params.limits,
            write_through: params.write_through,
            num_queues: params.num_queues,
            queue_size: params.queue_size,
        };
        let state = Arc::new(DeviceState {
            limits: params.limits,
            serial: params.serial,
            batch_notifications: AtomicBool::new(params.batch_notifications),
            failures: Failures::new(params.error_policy),
            ..DeviceState::with_view(params.name, below.into())
        });
        let stats: Vec<Arc<QueueStats>> = (0..params.num_queues).map(|_| Arc::default()).collect();
        let mut queues: Vec<Option<Remote<BlkQueue>>> = stats.iter().map(|_| None).collect();
        let (mut control, mut shards) = (None, Vec::new());
        let route = Route {
            view: state.below.view(),
            plan: params.engine,
            faults: params.faults,
            member: params.throttle.as_ref().map(Group::join),
        };
        for (position, iothread) in (0u16..).zip(iothreads) {
            let mine = (0u16..).zip(stats.iter().cloned());
            let mine = mine.filter(|(queue, _)| params.queue_iothreads[usize::from(*queue)] == position);
            let (mine, state) = (mine.collect::<Vec<_>>(), Arc::clone(&state));
            let route = route.clone();
            let create = move |resources: &Rc<Resources>| Shard::create(resources, mine, &state, &route);
            let created: Created = iothread.borrow().call(create)??;
            for (index, queue) in created.queues {
                queues[usize::from(index)] = Some(queue);
            }
            control.get_or_insert(created.control);
            shards.push(created.shard);
        }
        let queues = queues
            .into_iter()
            .map(|q| q.expect("each queue has an IOThread"))
            .collect();
        let control = control.expect("there is an IOThread");
        let writes = !params.limits.read_only;
        Ok(Self {
            handle: DiskHandle::new(Arc::clone(&state), control, writes, route, shards),
            state,
            config,
            cache: WriteCache::default(),
            queues,
            stats,
        })
    }

    /// The state that is shared with the IOThreads.
    pub fn state(&self) -> &Arc<DeviceState> {
        &self.state
    }

    /// The properties that the device announces.
    pub fn config(&self) -> &BlkConfig {
        &self.config
    }

    /// Handles to the queues, in order of their index.
    pub fn queues(&self) -> &[Remote<BlkQueue>] {
        &self.queues
    }

    /// The handle for threads that change the node below the disk.
    pub fn handle(&self) -> &Arc<DiskHandle> {
        &self.handle
    }

    /// How I/O is executed.
    pub fn engine(&self) -> Plan {
        self.handle.engine()
    }

    /// The counters of the queues, in order of their index.
    pub fn stats(&self) -> &[Arc<QueueStats>] {
        &self.stats
    }

    /// Reads the configuration space. It depends on the size of the queues.
    ///
    /// # Errors
    /// The range is outside the configuration space.
    pub fn read_config(&self, queue_size: u16, offset: u32, len: usize) -> Result<Vec<u8>, ConfigError> {
        let config = BlkConfig {
            queue_size,
            ..self.config
        };
        config.read(self.state.capacity(), self.cache.mode().writeback, offset, len)
    }

    /// The state of the write cache.
    pub fn cache(&self) -> WriteCache {
        self.cache
    }

    /// Sets the state of the write cache, after the queues have switched.
    pub fn set_cache(&mut self, cache: WriteCache) {
        self.cache = cache;
    }

    /// Locks the image, unless that was done already, and drops what this host has cached of it. Call this before a
    /// ring runs. Returns whether the size of the disk has changed. A disk that [`DiskHandle::deactivate`] has made
    /// inactive stays so.
    ///
    /// Waits a moment if another process holds the lock, which may be about to release it, and while another thread
    /// changes the node below. `run` executes an operation on an IOThread.
    ///
    /// # Errors
    /// Another process uses the image, or the state in which another host has left it cannot be found out.
    pub fn activate(
        &self,
        run: impl FnOnce(&NodeControl, IoOp) -> io::Result<()>,
    ) -> Result<bool, TakeError> {
        let mut turn = self.handle.turn.get();
        turn.take(&self.state.below, |op| run(&self.handle.control, op))
    }

    /// Flushes, and releases the lock of the image, after the last ring has stopped. `run` executes the flush on an
    /// IOThread.
    ///
    /// # Errors
    /// The flush failed. The image stays locked.
    pub fn deactivate(&mut self, run: impl FnOnce(&NodeControl, IoOp) -> io::Result<()>) -> io::Result<()> {
        let mut turn = self.handle.turn.get();
        let view = self.state.below.view();
        turn.hand_over(&view.node, |op| run(&self.handle.control, op))
    }

    /// The process ends: when rings stop from now on, the image is neither flushed nor unlocked. The next process on
    /// this host shares the page cache, and has to see reports of failed writes itself.
    pub fn end(&mut self) {
        self.handle.turn.keep(true);
    }

    /// Another process is about to take over: when rings stop, the image is neither flushed nor unlocked. Without
    /// `keep`, it is again.
    pub fn keep_image(&self, keep: bool) {
        self.handle.turn.keep(keep);
    }

    /// Leaves the image as another process can take it over, while nothing is being written. Returns true if that process
    /// has to lock it, because this one does not any more until the next [`activate`](Self::activate).
    ///
    /// # Errors
    /// The image cannot be left so, or `run` fails.
    pub fn settle(&self, run: impl FnOnce(&NodeControl, IoOp) -> io::Result<()>) -> io::Result<bool> {
        let mut turn = self.handle.turn.get();
        let view = self.state.below.view();
        turn.settle(&view.node, |op| run(&self.handle.control, op))
    }

    /// Uses the locks of another process, as [`with_image`](Self::with_image) shows them there.
    ///
    /// # Errors
    /// Others use the image, or it cannot be read.
    pub fn inherit_image(
        &self,
        locks: Vec<Option<OwnedFd>>,
        run: impl FnOnce(&NodeControl, IoOp) -> io::Result<()>,
    ) -> Result<(), TakeError> {
        let mut turn = self.handle.turn.get();
        turn.inherit(&self.state.below, locks, |op| run(&self.handle.control, op))
    }

    /// Shows the open files that have the locks of the image, or `None` where there are no locks. Returns `None` if the
    /// image is not taken.
    pub fn with_image<T>(&self, show: impl FnOnce(Vec<Option<BorrowedFd<'_>>>) -> T) -> Option<T> {
        let turn = self.handle.turn.get();
        turn.taken().map(show)
    }

    /// Flushes the disk, and reads its size again. An IOThread does that, so the caller does not block.
    pub fn control(&self) -> &Arc<NodeControl> {
        &self.handle.control
    }

    /// Resets the device for the next driver.
    pub fn reset(&mut self) {
        self.cache.reset();
        self.state.had_requests.store(false, Ordering::Relaxed);
    }
}

/// The reason why a disk cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// An IOThread has ended.
    #[error(transparent)]
    Gone(#[from] Gone),
    /// The handler for lost memory cannot be installed.
    #[error("SIGBUS cannot be handled: {0}")]
    Signal(io::Error),
    /// The engine is not available on an IOThread.
    #[error(transparent)]
    Engine(#[from] engine::Error),
}
