//! One virtqueue of a disk, on its IOThread.
//!
//! A request's way through these files: a kick or a poll notices it (`kick`), a visit takes its chain from the `ring`
//! and hands it to the engine (`visit`), and its completion is answered, published (`complete`), and notified
//! (`notify`). Between the two, the queue owns the chain (`ownership`). `phase` has the ring's life from start to stop,
//! and `control` the commands of the control thread. The other files deal with exceptions.
//!
//! The queue is the only user of its ring: there is no lock and no atomic reference count on the request path. Other
//! threads reach it through a [`Remote`]. It never blocks.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::mpsc::Sender;
use std::sync::{Arc, atomic::Ordering};

use super::state::DeviceState;
use super::stats::QueueStats;
use crate::aio::{AioContext, BottomHalf, Remote};
use crate::defer::DeferredCall;
use crate::engine::{Channel, DiskView};
use crate::io::Requests;

mod complete;
mod control;
mod dirty_log;
mod error_policy;
mod kick;
mod late_flush;
mod latencies;
mod memory_loss;
mod notify;
mod ownership;
mod phase;
mod quiesce;
mod retry;
mod ring;
mod timeouts;
mod unshared_memory;
mod visit;

use complete::EarlyNotification;
use kick::KickSource;
use late_flush::LateFlush;
use notify::{MissedNotification, Notifier};
use phase::Phase;
use retry::Held;
pub use ring::{QueueError, RingSetup, Stop};
use timeouts::Timeouts;
use unshared_memory::UnsharedMemory;

/// A virtqueue of a disk.
#[derive(Debug)]
pub struct BlkQueue {
    index: u16,
    device: Arc<DeviceState>,
    channel: RefCell<Channel>,
    ctx: AioContext,
    me: Weak<Self>,
    state: RefCell<State>,
    /// Recycled between visits.
    batch: RefCell<Requests>,
    early: Cell<EarlyNotification>,
    /// Asks for another visit when a budget was used up.
    again: BottomHalf,
    /// Publishes used elements at the end of the outermost defer scope.
    publication: DeferredCall,
}

#[derive(Debug)]
struct State {
    stats: Arc<QueueStats>,
    phase: Phase,
    /// The frontend lets the ring run (SET_VRING_ENABLE).
    enabled: bool,
    /// The node below must be left alone.
    quiesced: bool,
    /// Gets a message when the channel has no request any more.
    quiescing: Option<Sender<()>>,
    /// The disk can only be read.
    inactive: bool,
    /// The disk below the queue.
    view: Arc<DiskView>,
    /// The write cache is off: every write is stable before it completes.
    write_through: bool,
    /// Notifications are coalesced.
    coalescing: bool,
    kick: Option<KickSource>,
    notifier: Notifier,
    missed: MissedNotification,
    /// Requests for reuse; at most as many as ever were in flight.
    free: Requests,
    held: Held,
    late_flush: LateFlush,
    /// Present if late requests are reported.
    timeouts: Option<Timeouts>,
    unshared: UnsharedMemory,
    /// Ends what waits for requests to come back. Scheduled when the last one is back.
    drained: BottomHalf,
}

impl BlkQueue {
    /// Creates a queue without a ring on the context of the calling thread. Returns the handle for other threads.
    pub fn create(
        ctx: &AioContext,
        index: u16,
        device: Arc<DeviceState>,
        stats: Arc<QueueStats>,
        channel: Channel,
    ) -> Remote<Self> {
        Remote::new(ctx, Self::new(ctx, index, device, stats, channel))
    }

    /// As [`create`](Self::create), without the handle.
    pub(super) fn new(
        ctx: &AioContext,
        index: u16,
        device: Arc<DeviceState>,
        stats: Arc<QueueStats>,
        channel: Channel,
    ) -> Rc<Self> {
        let queue = Rc::new_cyclic(|me: &Weak<Self>| {
            let publisher = me.clone();
            let publish = move || {
                if let Some(queue) = publisher.upgrade() {
                    queue.publish();
                }
            };
            Self {
                index,
                channel: RefCell::new(channel),
                ctx: ctx.clone(),
                me: me.clone(),
                state: RefCell::new(State::new(ctx, index, Arc::clone(&device), stats, me)),
                device,
                batch: RefCell::default(),
                early: Cell::new(EarlyNotification::NONE),
                again: bottom_half(ctx, me, |queue| {
                    queue.process();
                }),
                publication: DeferredCall::new(publish),
            }
        });
        queue.set_batch_notifications(queue.device.batch_notifications.load(Ordering::Relaxed));
        queue
    }
}

/// Makes a bottom half that does nothing once the queue is gone.
fn bottom_half(ctx: &AioContext, queue: &Weak<BlkQueue>, run: impl Fn(&BlkQueue) + 'static) -> BottomHalf {
    let queue = Weak::clone(queue);
    ctx.bottom_half(move |_| {
        if let Some(queue) = queue.upgrade() {
            run(&queue);
        }
    })
}

impl State {
    fn new(
        ctx: &AioContext,
        index: u16,
        device: Arc<DeviceState>,
        stats: Arc<QueueStats>,
        queue: &Weak<BlkQueue>,
    ) -> Self {
        let io_timeout = device.failures.policy.io_timeout;
        Self {
            view: device.below.view(),
            notifier: Notifier::new(index, device, Arc::clone(&stats)),
            stats,
            phase: Phase::Stopped { base: 0 },
            enabled: false,
            quiesced: false,
            quiescing: None,
            inactive: false,
            write_through: false,
            coalescing: true,
            kick: None,
            missed: MissedNotification::new(ctx, queue.clone()),
            free: Vec::new(),
            held: Held::new(ctx, queue.clone()),
            late_flush: LateFlush::new(ctx, queue),
            timeouts: io_timeout.map(|limit| Timeouts::new(ctx, queue.clone(), limit)),
            unshared: UnsharedMemory::new(ctx, queue.clone()),
            drained: bottom_half(ctx, queue, |queue| {
                let mut state = queue.state.borrow_mut();
                state.finish_stop();
                state.finish_quiesce();
            }),
        }
    }
}
