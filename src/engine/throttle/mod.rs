//! A channel whose requests wait for their throttle group.
//!
//! Waiting requests are kept here, on their IOThread, in order of arrival. The group only decides how many may go.
//! Flushes are not limited. A ring that stops waits for its requests, so [`ThrottledChannel::release`] starts them
//! early.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use super::fault::channel::Submit;
use crate::aio::{AioContext, BottomHalf, Timer};
use crate::defer::DeferScope;
use crate::io::{Completer, IoOp, IoRequest, Requests};
use crate::throttle::{Direction, Lane, Member, Turn, Waits};

/// A channel with limits. IOThread only.
#[derive(Debug)]
pub(super) struct ThrottledChannel<C> {
    target: Rc<Target<C>>,
    shared: Rc<Shared<C>>,
}

/// The channel below, and the count of requests that wait for it.
#[derive(Debug)]
struct Target<C> {
    channel: C,
    waits: Arc<Waits>,
}

/// The shared state of a disk's queues on one IOThread.
struct Shared<C> {
    lane: Lane,
    waiting: [RefCell<VecDeque<Waiting<C>>>; 2],
    timer: Timer,
    /// The bottom half that other IOThreads schedule to wake this one.
    _wake: BottomHalf,
}

struct Waiting<C> {
    request: Box<IoRequest>,
    completer: Rc<dyn Completer>,
    target: Rc<Target<C>>,
}

impl<C: Submit + 'static> ThrottledChannel<C> {
    pub(super) fn new(ctx: &AioContext, channel: C, member: &Arc<Member>) -> Self {
        let shared = Rc::new_cyclic(|me: &Weak<Shared<C>>| {
            let look = |me: &Weak<Shared<C>>| {
                let me = Weak::clone(me);
                move || {
                    if let Some(shared) = me.upgrade() {
                        shared.follow(shared.lane.turn());
                    }
                }
            };
            let wake = ctx.bottom_half(look(me));
            Shared {
                lane: member.lane(wake.handle()),
                waiting: Default::default(),
                timer: ctx.timer(look(me)),
                _wake: wake,
            }
        });
        Self {
            target: Target::new(channel, Arc::default()),
            shared,
        }
    }

    /// Makes a channel for another queue of the disk. Its waiting requests are counted in `waits`.
    pub(super) fn with(&self, channel: C, waits: Arc<Waits>) -> Self {
        Self {
            target: Target::new(channel, waits),
            shared: Rc::clone(&self.shared),
        }
    }

    pub(super) fn inner(&self) -> &C {
        &self.target.channel
    }

    pub(super) fn submit(&self, batch: &mut Requests, completer: &Rc<dyn Completer>) -> usize {
        let mut free = Requests::new();
        let requests = batch.drain(..).map(|request| (cost(&request), request));
        let turn = self.shared.lane.admit(requests, |goes, request| match goes {
            true => free.push(request),
            false => self.hold(request, completer),
        });
        std::mem::swap(batch, &mut free);
        let merged = match batch.is_empty() {
            true => 0,
            false => self.target.channel.submit(batch, completer),
        };
        self.shared.follow(turn);
        merged
    }

    /// Starts all waiting requests, because a stopping ring waits for them.
    pub(super) fn release(&self) {
        self.shared.lane.release();
        self.shared.timer.cancel();
        self.shared.send([usize::MAX; 2]);
    }

    fn hold(&self, request: Box<IoRequest>, completer: &Rc<dyn Completer>) {
        let Some((direction, _)) = cost(&request) else {
            return;
        };
        self.target.waits.begin();
        self.shared.waiting[direction.index()]
            .borrow_mut()
            .push_back(Waiting {
                request,
                completer: Rc::clone(completer),
                target: Rc::clone(&self.target),
            });
    }
}

impl<C> Target<C> {
    fn new(channel: C, waits: Arc<Waits>) -> Rc<Self> {
        Rc::new(Self { channel, waits })
    }
}

impl<C: Submit> Shared<C> {
    fn follow(&self, turn: Turn) {
        if let Some(wait) = turn.timer {
            self.timer.arm_in(wait);
        }
        if turn.granted != [0; 2] {
            self.send(turn.granted);
        }
    }

    /// Submits this number of waiting requests of each direction, in batches of one queue.
    fn send(&self, granted: [usize; 2]) {
        let _scope = DeferScope::enter();
        for (waiting, granted) in self.waiting.iter().zip(granted) {
            let mut left = granted;
            loop {
                // A separate statement ends the borrow, because a completer may submit more requests.
                let batch = take_batch(&mut waiting.borrow_mut(), &mut left);
                let Some((mut batch, target, completer)) = batch else {
                    break;
                };
                target.waits.end(batch.len() as u64);
                batch.iter_mut().for_each(|request| request.admitted());
                target.channel.submit(&mut batch, &completer);
            }
        }
    }
}

/// Requests of one queue, with their way down and back.
type Batch<C> = (Requests, Rc<Target<C>>, Rc<dyn Completer>);

/// Takes the first requests that came from one queue, at most `left`.
fn take_batch<C>(waiting: &mut VecDeque<Waiting<C>>, left: &mut usize) -> Option<Batch<C>> {
    if *left == 0 {
        return None;
    }
    let Waiting {
        request,
        completer,
        target,
    } = waiting.pop_front()?;
    *left -= 1;
    let mut batch = vec![request];
    while *left > 0
        && waiting
            .front()
            .is_some_and(|next| Rc::ptr_eq(&next.target, &target))
    {
        *left -= 1;
        batch.extend(waiting.pop_front().map(|next| next.request));
    }
    Some((batch, target, completer))
}

/// Returns the direction and the bytes that a request is charged for. Flushes and salvage after a failed read are not
/// limited.
fn cost(request: &IoRequest) -> Option<(Direction, u64)> {
    match request.op {
        IoOp::Read => Some((Direction::Read, request.alone().len() as u64)),
        IoOp::Write { .. } | IoOp::ZeroedWrite { .. } => {
            Some((Direction::Write, request.alone().len() as u64))
        }
        IoOp::Discard | IoOp::WriteZeroes { .. } => {
            let bytes = request.ranges.iter().map(|range| range.len).sum();
            Some((Direction::Write, bytes))
        }
        IoOp::Salvage
        | IoOp::Flush
        | IoOp::FlushAtRest
        | IoOp::Leave
        | IoOp::Settle
        | IoOp::Inherit
        | IoOp::RefreshSize
        | IoOp::LookAnew => None,
    }
}

impl<C> fmt::Debug for Shared<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waiting = self.waiting.each_ref().map(|waiting| waiting.borrow().len());
        f.debug_struct("Shared")
            .field("lane", &self.lane)
            .field("waiting", &waiting)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
