//! One virtqueue of a disk, on its IOThread: from the kick to the engine, from the completion to the call.
//!
//! It owns its ring outright: no lock and no atomic reference count on the request path. The control thread reaches
//! it through a [`Remote`]. It never blocks.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::mpsc::Sender;
use std::sync::{Arc, atomic::Ordering};

use super::state::DeviceState;
use super::stats::QueueStats;
use crate::aio::{AioContext, BottomHalf, PollerHandle, Remote};
use crate::defer::DeferredCall;
use crate::engine::Channel;
use crate::io::Requests;

mod control;
mod execute;
mod lost;
mod notifier;
mod poll;
mod process;
mod running;
mod slow;
mod trouble;
mod unshared;
mod volatile;
mod watchdog;

pub use control::{RingSetup, Stop};
use execute::Visit;
use notifier::Notifier;
use poll::KickSource;
pub use running::QueueError;
use running::{Missing, Running};
use slow::Slow;
use trouble::Held;
use unshared::Unshared;
use volatile::Volatile;
use watchdog::Watchdog;

/// A virtqueue of a disk.
#[derive(Debug)]
pub struct BlkQueue {
    index: u16,
    device: Arc<DeviceState>,
    channel: Channel,
    ctx: AioContext,
    me: Weak<Self>,
    state: RefCell<State>,
    /// Recycled between visits.
    batch: RefCell<Requests>,
    visit: Cell<Visit>,
    /// Asks for another visit when a budget was used up.
    again: BottomHalf,
    /// The publication of used elements, deferred to the end of the outermost scope.
    publication: DeferredCall,
}

#[derive(Debug)]
struct State {
    stats: Arc<QueueStats>,
    running: Option<Running>,
    /// Where GET_VRING_BASE says to go on while no ring runs.
    base: u16,
    enabled: bool,
    /// The write cache is off: every write is stable before it completes.
    write_through: bool,
    /// The ring broke its rules: nothing more is taken from it; what is in flight is answered.
    broken: bool,
    /// The frontend has taken memory away: nothing is taken from the ring until it is back.
    paused: Option<Missing>,
    /// The count of lost mappings when this ring's were last looked at; `None`: never.
    losses: Option<usize>,
    /// The ring is started: a kick came since it was set up, or something was available before that.
    kicked: bool,
    /// The IOThread looks at the ring by itself, so the driver need not kick.
    polled: bool,
    in_flight: u16,
    /// Somebody waits for the last request of a ring that is being stopped.
    stopping: Option<(Stop, Sender<u16>)>,
    /// Ends the stop: scheduled when the last request of a stopping ring is counted out.
    stopped: BottomHalf,
    kick: Option<KickSource>,
    /// Notifications are coalesced.
    coalescing: bool,
    watchdog: Watchdog,
    unshared: Unshared,
    held: Held,
    volatile: Volatile,
    /// Present if slow requests are to be reported.
    slow: Option<Slow>,
    /// Present while a ring runs.
    poller: Option<PollerHandle>,
    notifier: Notifier,
    /// Requests for reuse; at most as many as ever were in flight.
    free: Requests,
}

impl BlkQueue {
    /// An idle queue on the context of the calling thread, and the handle that other threads use.
    pub fn create(
        ctx: &AioContext,
        index: u16,
        device: Arc<DeviceState>,
        stats: Arc<QueueStats>,
        channel: Channel,
    ) -> Remote<Self> {
        let queue = Rc::new_cyclic(|me: &Weak<Self>| {
            let (publisher, visitor) = (me.clone(), me.clone());
            let visit = move |_: &AioContext| {
                if let Some(queue) = visitor.upgrade() {
                    queue.process();
                }
            };
            let publish = move || {
                if let Some(queue) = publisher.upgrade() {
                    queue.publish();
                }
            };
            Self {
                index,
                channel,
                ctx: ctx.clone(),
                me: me.clone(),
                state: RefCell::new(State::new(ctx, index, Arc::clone(&device), stats, me)),
                device,
                batch: RefCell::default(),
                visit: Cell::new(Visit::begin(false)),
                again: ctx.bottom_half(visit),
                publication: DeferredCall::new(publish),
            }
        });
        queue.set_batch_notifications(queue.device.batch_notifications.load(Ordering::Relaxed));
        Remote::new(ctx, queue)
    }
}

/// The bottom half that ends the stop of a ring.
fn stopped_half(ctx: &AioContext, queue: Weak<BlkQueue>) -> BottomHalf {
    ctx.bottom_half(move |_| {
        if let Some(queue) = queue.upgrade() {
            queue.state.borrow_mut().finish_stop();
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
        let io_timeout = device.trouble.params.io_timeout;
        Self {
            notifier: Notifier::new(index, device, Arc::clone(&stats)),
            stats,
            running: None,
            base: 0,
            enabled: false,
            write_through: false,
            broken: false,
            paused: None,
            losses: None,
            kicked: false,
            polled: false,
            in_flight: 0,
            stopping: None,
            stopped: stopped_half(ctx, queue.clone()),
            kick: None,
            coalescing: true,
            watchdog: Watchdog::new(ctx, queue.clone()),
            unshared: Unshared::new(ctx, queue.clone()),
            held: Held::new(ctx, queue.clone()),
            volatile: Volatile::new(ctx, queue.clone()),
            slow: io_timeout.map(|limit| Slow::new(ctx, queue.clone(), limit)),
            poller: None,
            free: Vec::new(),
        }
    }

    fn is_active(&self) -> bool {
        self.running.is_some()
            && self.enabled
            && self.kicked
            && !self.broken
            && self.paused.is_none()
            && self.stopping.is_none()
    }
}
