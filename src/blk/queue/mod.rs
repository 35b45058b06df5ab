//! One virtqueue of a disk, on its IOThread.
//!
//! A request's way through these files: a kick or a poll notices it (`kick`), a visit takes its chain from the `ring`
//! and hands it to the engine (`visit`), and its completion is answered, published (`complete`), and notified
//! (`notify`). Between the two, the queue owns the chain (`ownership`). A ring goes from one `phase` to another in
//! `lifecycle`, and `control` has the commands of the control thread. The other files deal with exceptions.
//!
//! This file only knows the files that own a part of the queue, and these know no queue. All files with methods of
//! [`BlkQueue`] use this file.
//!
//! The queue is the only user of its ring: there is no lock and no atomic reference count on the request path. Other
//! threads reach it through a [`Remote`]. It never blocks.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;

use super::state::DeviceState;
use super::stats::QueueStats;
use crate::aio::clock::LoopClock;
use crate::aio::{AioContext, BottomHalf, Remote, Timer};
use crate::defer::DeferredCall;
use crate::engine::{Channel, DiskView};
use crate::io::{Completer, IoRequest, Requests};

mod complete;
mod control;
mod dirty_log;
mod early_notification;
mod error_policy;
mod held;
mod kick;
mod kick_source;
mod late_flush;
mod latencies;
mod lifecycle;
mod memory_loss;
mod missed_kick;
mod notify;
mod ownership;
mod phase;
mod position;
mod quiesce;
mod retry;
mod ring;
mod slow;
mod timeouts;
mod unshared_memory;
mod visit;

use early_notification::EarlyNotification;
use held::Held;
use kick_source::KickSource;
use late_flush::LateFlush;
use missed_kick::MissedKick;
use notify::{MissedNotification, Notifier};
use phase::Phase;
pub use ring::{QueueError, RingSetup, Stop};
use slow::Slow;
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
    /// Gets back the requests that are tried again.
    retrier: Rc<dyn Completer>,
}

#[derive(Debug)]
struct State {
    clock: Rc<LoopClock>,
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
    missed_kick: MissedKick,
    /// The kick eventfd of a ring that is stopping.
    last_kick: Option<Arc<File>>,
    notifier: Notifier,
    missed: MissedNotification,
    /// Requests for reuse; at most as many as ever were in flight.
    free: Requests,
    held: Held,
    late_flush: LateFlush,
    slow: Slow,
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
                retrier: Rc::new(Retrier(me.clone())),
            }
        });
        queue.set_batch_notifications(queue.device.batch_notifications.load(Ordering::Relaxed));
        queue
    }

    /// No request is in flight, or the channel has none: ends what waited for that.
    fn end_waits(&self) {
        let mut state = self.state.borrow_mut();
        state.finish_stop();
        state.finish_quiesce();
    }

    fn check_missed_notification(&self) {
        let State {
            phase,
            missed,
            notifier,
            ..
        } = &mut *self.state.borrow_mut();
        if let Some(ring) = phase.ring_mut() {
            missed.check(&mut ring.split, notifier);
        }
    }

    fn report_late_requests(&self) {
        let State {
            phase,
            timeouts,
            stats,
            ..
        } = &mut *self.state.borrow_mut();
        if let (Some(timeouts), Some(ring)) = (timeouts, phase.ring()) {
            timeouts.report(&ring.owned, self.index, &self.device, stats);
        }
    }

    fn report_unshared_memory(&self) {
        if let Some(ring) = self.state.borrow_mut().active_ring() {
            unshared_memory::report(ring, self.index, &self.device);
        }
    }
}

/// Gets back the requests that are tried again. The queue must keep it while such requests are in flight.
#[derive(Debug)]
struct Retrier(Weak<BlkQueue>);

impl Completer for Retrier {
    fn complete(&self, request: Box<IoRequest>) {
        if let Some(queue) = self.0.upgrade() {
            queue.retried(request);
        }
    }
}

/// Makes a bottom half that does nothing once the queue is gone.
fn bottom_half(ctx: &AioContext, queue: &Weak<BlkQueue>, run: impl Fn(&BlkQueue) + 'static) -> BottomHalf {
    let queue = Weak::clone(queue);
    ctx.bottom_half(move || {
        if let Some(queue) = queue.upgrade() {
            run(&queue);
        }
    })
}

/// Makes a timer that does nothing once the queue is gone.
fn timer(ctx: &AioContext, queue: &Weak<BlkQueue>, run: impl Fn(&BlkQueue) + 'static) -> Timer {
    let queue = Weak::clone(queue);
    ctx.timer(move || {
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
        let timer = |run: fn(&BlkQueue)| timer(ctx, queue, run);
        let bottom_half = |run: fn(&BlkQueue)| bottom_half(ctx, queue, run);
        let io_timeout = device.failures.policy.io_timeout;
        Self {
            clock: Rc::clone(ctx.clock()),
            view: device.below.view(),
            slow: Slow::new(index, Arc::clone(&device)),
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
            missed_kick: MissedKick::new(timer(BlkQueue::look_for_missed_kick)),
            last_kick: None,
            missed: MissedNotification::new(timer(BlkQueue::check_missed_notification)),
            free: Vec::new(),
            held: Held::new(timer(BlkQueue::retry_held)),
            late_flush: LateFlush::new(bottom_half(BlkQueue::flush_late)),
            timeouts: io_timeout.map(|limit| Timeouts::new(limit, timer(BlkQueue::report_late_requests))),
            unshared: UnsharedMemory::new(timer(BlkQueue::report_unshared_memory)),
            drained: bottom_half(BlkQueue::end_waits),
        }
    }
}
