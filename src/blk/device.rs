//! A virtio-blk disk as the control thread sees it: its configuration, its state, and handles to its queues.

use std::borrow::Borrow;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::config::{BlkConfig, ConfigError};
use super::error_policy::ErrorPolicy;
use super::failures::Failures;
pub use super::image_lock::TakeError;
use super::image_lock::Turn;
use super::queue::BlkQueue;
use super::request::ID_LEN;
pub use super::state::DeviceState;
use super::stats::QueueStats;
use super::write_cache::WriteCache;
use crate::aio::{Gone, Remote};
use crate::engine::{self, BlockNode, Faults, NodeControl, Plan, Resources};
use crate::guard;
use crate::io::IoOp;
use crate::iothread::IoThread;
use crate::storage::Limits;
use crate::throttle::{Group, Member};

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
    turn: Turn,
    control: Arc<NodeControl>,
    engine: Plan,
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
        node: Arc<BlockNode>,
        params: DeviceParams,
        iothreads: &[impl Borrow<IoThread>],
    ) -> Result<Self, CreateError> {
        guard::install().map_err(CreateError::Signal)?;
        let turn = Turn::new(Arc::clone(&node), !params.limits.read_only);
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
            ..DeviceState::new(params.name, node)
        });
        let stats: Vec<Arc<QueueStats>> = (0..params.num_queues).map(|_| Arc::default()).collect();
        let mut queues: Vec<Option<Remote<BlkQueue>>> = stats.iter().map(|_| None).collect();
        let mut control = None;
        let member = params.throttle.as_ref().map(Group::join);
        for (position, iothread) in (0u16..).zip(iothreads) {
            let mine = (0u16..).zip(stats.iter().cloned());
            let mine = mine.filter(|(queue, _)| params.queue_iothreads[usize::from(*queue)] == position);
            let (mine, state) = (mine.collect::<Vec<_>>(), Arc::clone(&state));
            let (plan, extras) = (params.engine, (params.faults.clone(), member.clone()));
            let create =
                move |resources: &Rc<Resources>| create_queues(resources, mine, &state, plan, extras);
            let created = iothread.borrow().call(create)??;
            for (index, queue) in created.queues {
                queues[usize::from(index)] = Some(queue);
            }
            control.get_or_insert(created.control);
        }
        let queues = queues
            .into_iter()
            .map(|q| q.expect("each queue has an IOThread"))
            .collect();
        Ok(Self {
            state,
            config,
            cache: WriteCache::default(),
            turn,
            control: Arc::new(control.expect("there is an IOThread")),
            engine: params.engine,
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

    /// How I/O is executed.
    pub fn engine(&self) -> Plan {
        self.engine
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
    /// ring runs. Returns whether the size of the image has changed.
    ///
    /// Waits a moment if another process holds the lock, which may be about to release it.
    ///
    /// # Errors
    /// Another process uses the image, or the state in which another host has left it cannot be found out.
    pub fn activate(
        &mut self,
        run: impl FnOnce(&NodeControl, IoOp) -> io::Result<()>,
    ) -> Result<bool, TakeError> {
        self.turn.take(|op| run(&self.control, op))
    }

    /// Returns whether the image may have been used since it was locked.
    pub fn is_active(&self) -> bool {
        self.turn.is_taken()
    }

    /// Flushes, and releases the lock of the image, after the last ring has stopped. `run` executes the flush on an
    /// IOThread.
    ///
    /// # Errors
    /// The flush failed. The image stays locked.
    pub fn deactivate(&mut self, run: impl FnOnce(&NodeControl, IoOp) -> io::Result<()>) -> io::Result<()> {
        self.turn.hand_over(|op| run(&self.control, op))
    }

    /// The process ends: when rings stop from now on, the image is neither flushed nor unlocked. The next process on
    /// this host shares the page cache, and has to see reports of failed writes itself.
    pub fn end(&mut self) {
        self.turn.end();
    }

    /// Flushes the disk, and reads its size again. An IOThread does that, so the caller does not block.
    pub fn control(&self) -> &Arc<NodeControl> {
        &self.control
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

/// The parts of a disk on one IOThread.
struct Created {
    queues: Vec<(u16, Remote<BlkQueue>)>,
    control: NodeControl,
}

fn create_queues(
    resources: &Resources,
    mine: Vec<(u16, Arc<QueueStats>)>,
    state: &Arc<DeviceState>,
    plan: Plan,
    (faults, member): (Option<Arc<Faults>>, Option<Arc<Member>>),
) -> Result<Created, engine::Error> {
    let (ctx, node) = (resources.ctx(), &state.node);
    let plain = node.open_channel(resources, plan)?;
    let control = NodeControl::new(ctx, plain.sibling());
    let channel = match faults {
        Some(faults) => plain.with_faults(ctx, faults, node.limits().logical_block_size),
        None => plain,
    };
    let channel = match member {
        Some(member) => channel.with_limits(ctx, &member),
        None => channel,
    };
    let create = |(index, stats)| {
        let queue = BlkQueue::create(ctx, index, Arc::clone(state), stats, channel.sibling());
        (index, queue)
    };
    Ok(Created {
        queues: mine.into_iter().map(create).collect(),
        control,
    })
}
