//! One virtqueue of a disk, on its IOThread: from the kick to the engine, from the completion to the call.
//!
//! It owns its ring outright: no lock and no atomic reference count on the request path. The control thread reaches
//! it through a [`Remote`]. It never blocks.

use std::cell::RefCell;
use std::fs::File;
use std::rc::{Rc, Weak};
use std::sync::mpsc::Sender;
use std::sync::{Arc, atomic::Ordering};
use std::time::Duration;

use super::device::DeviceState;
use super::stats::{QueueStats, RingState};
use crate::aio::{AioContext, BottomHalf, PollerHandle, Remote};
use crate::defer::{DeferScope, DeferredCall};
use crate::engine::{Completer, Engine, IoRequest, Requests};
use crate::log_limit::LogLimit;
use crate::memory::{GuestMemory, RingLog};
use crate::virtqueue::{InflightArea, RingAddresses, RingError, RingFeatures};

mod execute;
mod lost;
mod notifier;
mod poll;
mod running;
mod slow;
mod trouble;
mod watchdog;

use notifier::Notifier;
use poll::KickSource;
pub use running::QueueError;
use running::Running;
use slow::Slow;
use trouble::Held;
use watchdog::Watchdog;

/// A guest may reset its device and break the ring again as often as it likes.
static BROKEN: LogLimit<u16> = LogLimit::new();

/// What the frontend has said about a ring that is to run.
#[derive(Debug)]
pub struct RingSetup {
    /// The mapped memory table.
    pub memory: Arc<GuestMemory>,
    /// Where the parts are.
    pub addresses: RingAddresses,
    /// Entries.
    pub size: u32,
    /// The available index to go on at.
    pub base: u16,
    /// Negotiated features.
    pub features: RingFeatures,
    /// Where to track what is in flight, and what a predecessor has left there.
    pub inflight: Option<InflightArea>,
    /// Where to log what is written, if the VM migrates.
    pub log: Option<RingLog>,
}

/// A virtqueue of a disk.
#[derive(Debug)]
pub struct BlkQueue {
    index: u16,
    device: Arc<DeviceState>,
    engine: Engine,
    ctx: AioContext,
    me: Weak<Self>,
    state: RefCell<State>,
    /// Recycled between visits.
    batch: RefCell<Requests>,
    done: RefCell<Requests>,
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
    /// The ring broke its rules: nothing more is taken from it; what is in flight is answered.
    broken: bool,
    /// The count of lost mappings when this ring's were last looked at; `None`: never.
    losses: Option<usize>,
    /// A kick came since the ring was set up (the specification's "started").
    kicked: bool,
    /// The IOThread looks at the ring by itself, so the driver need not kick.
    polled: bool,
    in_flight: u16,
    /// Somebody waits for the last request of a ring that is being stopped.
    stopping: Option<Sender<u16>>,
    kick: Option<KickSource>,
    /// Notifications are coalesced.
    coalescing: bool,
    watchdog: Watchdog,
    held: Held,
    /// Present if slow requests are to be reported.
    slow: Option<Slow>,
    /// Present while a ring runs.
    _poller: Option<PollerHandle>,
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
        engine: Engine,
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
            let io_timeout = device.trouble.params.io_timeout;
            Self {
                index,
                device,
                engine,
                ctx: ctx.clone(),
                me: me.clone(),
                state: RefCell::new(State::new(ctx, index, stats, me, io_timeout)),
                batch: RefCell::default(),
                done: RefCell::default(),
                again: ctx.bottom_half(visit),
                publication: DeferredCall::new(publish),
            }
        });
        queue.set_batch_notifications(queue.device.batch_notifications.load(Ordering::Relaxed));
        Remote::new(ctx, queue)
    }

    /// Sets up the ring. It runs with the first kick, so the kick eventfd is to be set after this.
    ///
    /// A ring that goes on where a predecessor has stopped waits for no kick, and notifies once: either may be lost.
    /// Returns whether it is one.
    ///
    /// # Errors
    /// Addresses, sizes and indices that do not do; an in-flight region that makes no sense.
    pub fn start(&self, setup: RingSetup) -> Result<bool, RingError> {
        let (mut running, resumed) = Running::new(setup)?;
        // A predecessor that was killed while it polled has left the driver told not to kick.
        running.ring.enable_kicks();
        let poller = self
            .ctx
            .add_poller(self.me.upgrade().expect("called on a live queue"));
        let mut state = self.state.borrow_mut();
        (state.kicked, state.broken, state.losses) = (resumed, false, None);
        state.stats.state.set(RingState::Running);
        state.running = Some(running);
        state._poller = Some(poller);
        if resumed {
            state.notifier.ring_resumed();
        }
        Ok(resumed)
    }

    /// Stops the ring: nothing more is taken; when the last request in flight is answered, `done` gets the available
    /// index to go on at, and nothing is written to the ring or signalled any more (GET_VRING_BASE).
    pub fn stop(&self, done: Sender<u16>) {
        let mut state = self.state.borrow_mut();
        state.stopping = Some(done);
        let handlers = (state.kick.take(), state._poller.take());
        drop(state);
        drop(handlers);
        self.release_held();
        self.finish_stop();
    }

    /// Switches the processing of the ring on or off (SET_VRING_ENABLE).
    pub fn set_enabled(&self, enabled: bool) {
        self.state.borrow_mut().enabled = enabled;
        self.process();
    }

    /// Switches the coalescing of notifications on or off.
    ///
    /// Off, every completion is published and notified on its own, unless the driver has set NO_INTERRUPT.
    pub fn set_batch_notifications(&self, on: bool) {
        self.state.borrow_mut().coalescing = on;
        self.publication.set_coalescing(on);
    }

    /// Replaces the call eventfd; a running ring signals the new one once, lest a call was lost with the old one.
    pub fn set_call(&self, call: Option<Arc<File>>) {
        let mut state = self.state.borrow_mut();
        let replaced = state.running.is_some() && state.notifier.was_used();
        state.notifier.set_call(call);
        if replaced {
            state.notifier.notify();
        }
    }

    /// Replaces the eventfd that reports a broken ring.
    pub fn set_err(&self, err: Option<Arc<File>>) {
        self.state.borrow_mut().notifier.set_err(err);
    }

    /// Resolves a running ring again in a new memory table. Requests in flight keep the old one.
    pub fn set_memory(&self, memory: &Arc<GuestMemory>) {
        let mut state = self.state.borrow_mut();
        if let Some(running) = &mut state.running
            && let Err(error) = running.remap(memory)
        {
            self.fail(&mut state, &error.into());
        }
    }

    /// Logs what a running ring writes from here on, or no more.
    pub fn set_log(&self, log: Option<RingLog>) {
        if let Some(running) = &mut self.state.borrow_mut().running {
            running.set_log(log);
        }
    }

    /// Takes what the driver made available, within the budget of a visit, and hands it to the engine.
    ///
    /// Returns whether there was anything.
    fn process(&self) -> bool {
        let _scope = DeferScope::enter();
        let mut batch = self.batch.take();
        let collected = self.collect(&mut batch);
        let progress = !batch.is_empty() || collected.answered;
        if !batch.is_empty() {
            self.execute(&mut batch, collected.more);
        }
        self.batch.replace(batch);
        if collected.answered {
            self.publication.defer();
        }
        if collected.more {
            self.again.schedule();
        }
        progress
    }

    fn collect(&self, batch: &mut Requests) -> Collected {
        let mut state = self.state.borrow_mut();
        if !state.is_active() {
            return Collected::default();
        }
        let mut collected = state.collect(&self.device, batch);
        // After the last look at guest memory, before anything is done about it: what was lost reads as zeroes.
        if let Some(lost) = state.lost_memory() {
            state.abandon(batch);
            collected = Err(lost);
        }
        if let Some(slow) = &mut state.slow {
            slow.begin(batch);
        }
        collected.unwrap_or_else(|error| {
            self.fail(&mut state, &error);
            // What was answered before the error is still to be shown.
            Collected {
                answered: true,
                more: false,
            }
        })
    }

    /// Stops a ring that cannot be trusted any more: everything else goes on.
    fn fail(&self, state: &mut State, error: &QueueError) {
        // Zeroes in the place of lost memory look like all kinds of mistakes.
        let lost = state.lost_memory();
        let error = lost.as_ref().unwrap_or(error);
        if let Some(suppressed) = BROKEN.pass(self.index) {
            tracing::error!(
                device = %self.device.name,
                queue = self.index,
                %error,
                suppressed,
                "virtqueue is broken: stopped until the frontend sets it up again"
            );
        }
        state.stats.broken.add(1);
        state.stats.state.set(RingState::Broken);
        state.broken = true;
        state.notifier.report_broken();
    }
}

/// What one visit found.
#[derive(Clone, Copy, Debug, Default)]
struct Collected {
    /// Some requests were answered at once.
    answered: bool,
    /// The budget was used up.
    more: bool,
}

impl Completer for BlkQueue {
    fn complete(&self, request: Box<IoRequest>) {
        if request.result.is_err() {
            return self.trouble(request);
        }
        self.answer(request);
    }

    fn worker_is_back(&self) {
        self.finish_stop();
    }
}

impl BlkQueue {
    /// Answers a request that is over.
    fn answer(&self, request: Box<IoRequest>) {
        self.state.borrow_mut().complete(request);
        self.publication.defer();
        self.finish_stop();
    }

    /// Answers whoever stops the ring, once nothing of it is anywhere else.
    fn finish_stop(&self) {
        if !self.engine.is_sharing() {
            self.state.borrow_mut().finish_stop();
        }
    }
}

impl State {
    fn new(
        ctx: &AioContext,
        index: u16,
        stats: Arc<QueueStats>,
        queue: &Weak<BlkQueue>,
        io_timeout: Option<Duration>,
    ) -> Self {
        Self {
            notifier: Notifier::new(index, Arc::clone(&stats)),
            stats,
            running: None,
            base: 0,
            enabled: false,
            broken: false,
            losses: None,
            kicked: false,
            polled: false,
            in_flight: 0,
            stopping: None,
            kick: None,
            coalescing: true,
            watchdog: Watchdog::new(ctx, queue.clone()),
            held: Held::new(ctx, queue.clone()),
            slow: io_timeout.map(|limit| Slow::new(ctx, queue.clone(), limit)),
            _poller: None,
            free: Vec::new(),
        }
    }

    fn is_active(&self) -> bool {
        self.running.is_some() && self.enabled && self.kicked && !self.broken && self.stopping.is_none()
    }

    /// Takes requests until the ring is empty or the budget of a visit is used up.
    fn collect(&mut self, device: &DeviceState, batch: &mut Requests) -> Result<Collected, QueueError> {
        let Some(running) = &mut self.running else {
            return Ok(Collected::default());
        };
        let before = batch.len();
        let result = running.take(device, &self.stats, self.polled, &mut self.free, batch);
        self.in_flight += u16::try_from(batch.len() - before).expect("bounded by the budget");
        result
    }

    /// Puts the answer to a request into the ring.
    fn complete(&mut self, mut request: Box<IoRequest>) {
        self.in_flight -= 1;
        if let Some(running) = &mut self.running {
            running.complete(&self.stats, &request);
        }
        request.iov.clear();
        self.free.push(request);
    }

    /// Shows completed requests to the driver and notifies it if it wants that.
    fn publish(&mut self) {
        let Some(running) = &mut self.running else { return };
        let completions = u64::from(running.ring.unpublished());
        if completions == 0 {
            return;
        }
        // Without coalescing every completion is notified, though `used_event` may lie behind it: a driver that is
        // woken slowly suppresses so much that there would be nothing to compare.
        let wanted = running.ring.publish() || !self.coalescing && running.ring.features().event_idx;
        self.stats.completions.add(completions);
        self.notifier.completed(completions);
        if wanted {
            self.notifier.notify();
        } else if running.ring.features().event_idx {
            self.watchdog.arm();
        }
    }

    /// Answers whoever stops the ring, once nothing is in flight.
    fn finish_stop(&mut self) {
        if self.in_flight > 0 || self.stopping.is_none() {
            return;
        }
        self.publish();
        if let Some(running) = self.running.take() {
            self.base = running.ring.next_avail();
        }
        (self.kicked, self.polled) = (false, false);
        self.stats.state.set(RingState::Stopped);
        self.notifier.ring_stopped();
        if let Some(done) = self.stopping.take() {
            // Whoever asked may have gone.
            let _ = done.send(self.base);
        }
    }
}
