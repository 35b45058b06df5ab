//! The requests of one IOThread to a disk in a Ceph cluster.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use super::active::{Active, State};
use super::disk::RbdDisk;
use super::mailbox::{Mailbox, Results, Transfer};
use super::spare::Spares;
use crate::aio::clock::LoopClock;
use crate::aio::{AioContext, BottomHalf, RemoteWork, Timer};
use crate::ceph::{Call, Completion, Operation};
use crate::defer::DeferScope;
use crate::engine::link_channel::RemoteLink;
use crate::engine::pace::Pace;
use crate::io::{Completer, IoOp, IoRequest, Requests, own};

/// The time that a ring which stops waits for a cluster that does not answer.
const STOP_TIME: Duration = Duration::from_secs(3);

/// A link. IOThread only.
pub(in crate::engine) struct Link {
    disk: Arc<RbdDisk>,
    mailbox: Arc<Mailbox>,
    state: RefCell<State>,
    channels: Cell<u64>,
    /// Takes results out of the mailbox.
    _bottom_half: BottomHalf,
    /// Ends the wait of rings that stop.
    stop: Timer,
    /// Ends the time in which results gather.
    gather: Timer,
    pace: RefCell<Pace>,
    clock: Rc<LoopClock>,
    remote: RemoteWork,
    /// The place for the next results, kept for its capacity.
    next: Cell<Results>,
    spares: RefCell<Spares>,
}

impl Link {
    pub(in crate::engine) fn new(ctx: &AioContext, disk: &Arc<RbdDisk>) -> Rc<Self> {
        Rc::new_cyclic(|me: &Weak<Self>| {
            let upgraded = |run: fn(&Self)| {
                let me = Weak::clone(me);
                move || {
                    if let Some(link) = me.upgrade() {
                        run(&link);
                    }
                }
            };
            let bottom_half = ctx.bottom_half(upgraded(Self::take_results));
            let mailbox = Arc::new(Mailbox::new(bottom_half.handle()));
            Self {
                disk: Arc::clone(disk),
                mailbox,
                state: RefCell::default(),
                channels: Cell::new(0),
                _bottom_half: bottom_half,
                stop: ctx.timer(upgraded(Self::end_stop)),
                gather: ctx.timer(upgraded(Self::take_results)),
                pace: RefCell::default(),
                clock: Rc::clone(ctx.clock()),
                remote: ctx.remote_work(),
                next: Cell::default(),
                spares: RefCell::default(),
            }
        })
    }

    fn hurry(&self, state: &mut State, channel: u64) {
        let mut any = false;
        for active in state.actives().filter(|active| active.channel == channel) {
            (active.stopping, any) = (true, true);
        }
        if any {
            self.stop.arm_in(STOP_TIME);
        }
    }

    fn end_stop(&self) {
        let _scope = DeferScope::enter();
        let mut state = self.state.borrow_mut();
        for place in 0..state.places.len() {
            let stopping = |active: &Active| active.stopping;
            if state.places[place].active.as_ref().is_some_and(stopping) {
                // The queues know that nobody has answered these. Their operations go on, without the guest's memory.
                state.end(place, Some(libc::ECANCELED));
            }
        }
        drop(state);
        self.complete();
    }

    /// Takes a request, and starts its operations.
    fn add(&self, state: &mut State, request: Box<IoRequest>, channel: u64) {
        let (op, options) = (request.op, self.disk.options());
        let place = state.insert(request, channel);
        match op {
            // The size was read when the image was locked.
            IoOp::LookAnew | IoOp::Inherit => {}
            IoOp::RefreshSize => self.refresh_size(state, place),
            IoOp::Flush | IoOp::FlushAtRest | IoOp::Leave | IoOp::Settle => self.flush(state, place),
            IoOp::Read | IoOp::Salvage => self.read(state, place),
            IoOp::Write { durable } => {
                state.flush_after(place, durable);
                self.write(state, place);
            }
            IoOp::ZeroedWrite { durable, unmap } => {
                state.flush_after(place, durable);
                let Some(request) = state.request(place) else {
                    return;
                };
                let (offset, len) = (request.offset, request.whole().len() as u64);
                let unmap = unmap && options.unmap;
                self.start(state, place, 0, Operation::WriteZeroes { offset, len, unmap });
            }
            IoOp::Discard if !options.unmap => {}
            IoOp::Discard | IoOp::WriteZeroes { .. } => {
                state.flush_after(place, matches!(op, IoOp::WriteZeroes { durable: true }));
                let Some(request) = state.request(place) else {
                    return;
                };
                for range in request.ranges.clone() {
                    let (offset, len) = (range.offset, range.len);
                    let operation = match op {
                        IoOp::Discard => Operation::Discard { offset, len },
                        _ => Operation::WriteZeroes {
                            offset,
                            len,
                            unmap: range.unmap && options.unmap,
                        },
                    };
                    self.start(state, place, 0, operation);
                }
            }
        }
        self.settle(state, place);
    }

    /// Reads the size again on a thread that may wait for the cluster.
    fn refresh_size(&self, state: &mut State, place: usize) {
        let call = self.call(state, place, 0);
        let disk = Arc::clone(&self.disk);
        self.disk.image().run_later(move |image| {
            let refreshed = image.size().map(|size| disk.accept(size));
            Transfer::complete(call, refreshed.err().unwrap_or(0).into());
        });
        if let Some(active) = &mut state.places[place].active {
            active.left += 1;
        }
    }

    /// Prepares an operation of a request, with a buffer of `len` bytes.
    fn call(&self, state: &State, place: usize, len: usize) -> Box<Call<Transfer>> {
        let owner = (place, state.places[place].generation);
        let mut spares = self.spares.borrow_mut();
        spares.take(self.disk.image(), &self.mailbox, owner, len)
    }

    fn flush(&self, state: &mut State, place: usize) {
        if !self.disk.options().no_flush {
            self.start(state, place, 0, Operation::Flush);
        }
    }

    fn read(&self, state: &mut State, place: usize) {
        let Some(request) = state.request(place) else {
            return;
        };
        let (offset, len) = (request.offset, request.whole().len());
        self.start(state, place, len, Operation::Read { offset });
    }

    fn write(&self, state: &mut State, place: usize) {
        let Some(request) = state.request(place) else {
            return;
        };
        let (offset, memory) = (request.offset, request.whole());
        // Our own mapping: librbd copies the data in this call, and memory that is lost must not end the process.
        let distance = memory.own_distance();
        let ours = |range: &libc::iovec| libc::iovec {
            iov_base: own(range.iov_base, distance).cast(),
            iov_len: range.iov_len,
        };
        let iov: smallvec::SmallVec<[libc::iovec; 8]> = memory.as_slice().iter().map(ours).collect();
        self.start(state, place, 0, Operation::Write { offset, iov: &iov });
    }

    /// Starts an operation of a request, with a buffer of `len` bytes.
    fn start(&self, state: &mut State, place: usize, len: usize, operation: Operation<'_>) {
        let started = self.call(state, place, len).start(operation);
        let Some(active) = &mut state.places[place].active else {
            return;
        };
        match started {
            Ok(()) => active.left += 1,
            Err((_, code)) => active.error = active.error.or(Some(-code)),
        }
    }

    /// Completes a request that has no operation left.
    fn settle(&self, state: &mut State, place: usize) {
        let Some(active) = &mut state.places[place].active else {
            return;
        };
        if active.left > 0 {
            return;
        }
        let error = active.error;
        if std::mem::take(&mut active.flush_after) && error.is_none() {
            self.flush(state, place);
            return self.settle(state, place);
        }
        state.end(place, error);
    }

    fn take_results(&self) {
        let _scope = DeferScope::enter();
        let mut results = self.mailbox.take(self.next.take());
        let answers = results.len();
        let mut state = self.state.borrow_mut();
        for (call, result) in results.drain(..) {
            self.take_result(&mut state, &call.completion, result);
            self.spares.borrow_mut().put(call);
        }
        self.next.set(results);
        let now = self.clock.read();
        let time = self.pace.borrow_mut().taken(now, answers, state.len());
        if let Some(time) = time {
            self.gather.arm_in(time);
        }
        self.mailbox.set_gathers(time.is_some());
        drop(state);
        self.complete();
    }

    fn take_result(&self, state: &mut State, transfer: &Transfer, result: i64) {
        let (place, generation) = transfer.owner;
        if state.places[place].generation != generation {
            return; // The request was given up.
        }
        if let Some(active) = &mut state.places[place].active {
            active.left -= 1;
            active.error = active.error.or(active.take(transfer.data(), result).err());
        }
        self.settle(state, place);
    }

    /// Passes on requests that are over. No borrow is live, because their owner may submit others.
    fn complete(&self) {
        loop {
            let mut done = std::mem::take(&mut self.state.borrow_mut().done);
            if done.is_empty() {
                break;
            }
            done.drain(..).for_each(|request| request.finish());
            let mut state = self.state.borrow_mut();
            if state.done.is_empty() {
                // Kept for its capacity.
                state.done = done;
            }
        }
        self.remote.set(self.state.borrow().len() > 0);
    }
}

impl RemoteLink for Link {
    fn waits_for_others(&self) -> bool {
        self.remote.waits()
    }

    fn number(&self) -> u64 {
        self.channels.set(self.channels.get() + 1);
        self.channels.get()
    }

    fn submit(&self, batch: &mut Requests, completer: &Rc<dyn Completer>, channel: u64) {
        let mut state = self.state.borrow_mut();
        for mut request in batch.drain(..) {
            request.set_completer(Rc::clone(completer));
            let at_rest = request.op == IoOp::FlushAtRest;
            self.add(&mut state, request, channel);
            if at_rest {
                self.hurry(&mut state, channel);
            }
        }
        drop(state);
        self.complete();
    }

    fn give_up_soon(&self, channel: u64) {
        self.hurry(&mut self.state.borrow_mut(), channel);
    }

    fn writes_zeroes(&self) -> bool {
        true
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Operations of requests that were given up may go on.
        self.mailbox.close();
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("disk", &self.disk)
            .finish_non_exhaustive()
    }
}
