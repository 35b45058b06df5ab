//! A virtio-blk disk as the control thread sees it: its configuration, its state, handles to its queues.

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

/// How a disk is to be served.
#[derive(Clone, Debug)]
pub struct DeviceParams {
    /// For messages: the image's path.
    pub name: String,
    /// Serial number, as `/sys/block/vda/serial` shows it.
    pub serial: [u8; ID_LEN],
    /// Number of queues, at least 1.
    pub num_queues: u16,
    /// Largest queue size accepted.
    pub queue_size: u16,
    /// What the disk offers: the limits of its node, or less.
    pub limits: Limits,
    /// Every write is stable before it completes, and the driver has nothing to flush.
    pub write_through: bool,
    /// How I/O is executed.
    pub engine: Plan,
    /// The IOThread of each queue, an index into those that [`BlkDevice::new`] gets.
    pub queue_iothreads: Vec<u16>,
    /// Notifications are coalesced at the start.
    pub batch_notifications: bool,
    /// What becomes of requests that the disk cannot execute.
    pub error_policy: ErrorPolicy,
    /// Faults to be injected.
    pub faults: Option<Arc<Faults>>,
    /// Limits, which other disks may share.
    pub throttle: Option<Arc<Group>>,
}

/// A disk. It belongs to one control thread.
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
    /// Makes a disk whose queues live on `iothreads`.
    ///
    /// # Errors
    /// An IOThread that has ended, or has no resources for the engine.
    ///
    /// # Panics
    /// If there is no IOThread, or a queue's is not among them.
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

    /// What is shared with the IOThreads.
    pub fn state(&self) -> &Arc<DeviceState> {
        &self.state
    }

    /// What the device announces.
    pub fn config(&self) -> &BlkConfig {
        &self.config
    }

    /// Handles to the queues, in order.
    pub fn queues(&self) -> &[Remote<BlkQueue>] {
        &self.queues
    }

    /// How I/O is executed.
    pub fn engine(&self) -> Plan {
        self.engine
    }

    /// The queues' counters, in order.
    pub fn stats(&self) -> &[Arc<QueueStats>] {
        &self.stats
    }

    /// Reads the configuration space, as it is for queues of `queue_size` entries.
    ///
    /// # Errors
    /// A range outside of it.
    pub fn read_config(&self, queue_size: u16, offset: u32, len: usize) -> Result<Vec<u8>, ConfigError> {
        let config = BlkConfig {
            queue_size,
            ..self.config
        };
        config.read(self.state.capacity(), self.cache.mode().writeback, offset, len)
    }

    /// The write cache.
    pub fn cache(&self) -> WriteCache {
        self.cache
    }

    /// Follows a change of the write cache that the queues have made already.
    pub fn set_cache(&mut self, cache: WriteCache) {
        self.cache = cache;
    }

    /// Locks the image, unless that is done already, and forgets what this host knew of it. To be called before a ring
    /// runs; may be called earlier. Returns whether the size has changed.
    ///
    /// Waits a moment for somebody who is about to let go of it.
    ///
    /// # Errors
    /// Somebody else uses the image, or it is not known what another host has left there.
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

    /// No ring runs any more: flushes, and lets others lock the image. `run` executes the flush on an IOThread.
    ///
    /// # Errors
    /// Those of the flush; the image stays locked.
    pub fn deactivate(&mut self, run: impl FnOnce(&NodeControl, IoOp) -> io::Result<()>) -> io::Result<()> {
        self.turn.hand_over(|op| run(&self.control, op))
    }

    /// The process ends: whatever stops from here on, the image is neither flushed nor unlocked, for the successor on
    /// this host shares the page cache and is to hear of failed writes itself.
    pub fn end(&mut self) {
        self.turn.end();
    }

    /// Flushes the disk, and looks at its size again: on an IOThread, so that nobody else blocks.
    pub fn control(&self) -> &Arc<NodeControl> {
        &self.control
    }

    /// The next driver finds the device as the first one did.
    pub fn reset(&mut self) {
        self.cache.reset();
        self.state.had_requests.store(false, Ordering::Relaxed);
    }
}

/// Why a disk cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// An IOThread has ended.
    #[error(transparent)]
    Gone(#[from] Gone),
    /// No handler for memory that a frontend takes away.
    #[error("SIGBUS cannot be handled: {0}")]
    Signal(io::Error),
    /// The engine cannot be had on an IOThread.
    #[error(transparent)]
    Engine(#[from] engine::Error),
}

/// What a disk has on one IOThread.
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
