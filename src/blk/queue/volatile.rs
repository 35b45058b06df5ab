//! Writes that were taken while the write cache was on, and are over after it was switched off.
//!
//! They may have missed the flush that goes with the switch, so each gets one of its own before it is answered. VIRTIO
//! leaves open what such a write is (1.3, 5.2.6.2), but a Linux guest whose cache is off sends no flush for it either.
//! IOThread only. Others pay a look at a flag.

use std::rc::{Rc, Weak};

use super::{BlkQueue, State};
use crate::aio::{AioContext, BottomHalf};
use crate::defer::DeferScope;
use crate::io::{Completer, IoOp, IoRequest, Requests};

/// The writes of a queue that are still to be flushed. IOThread only.
#[derive(Debug)]
pub(super) struct Volatile {
    waiting: Requests,
    /// Hands them to the engine: they come back in the middle of something else.
    flush: BottomHalf,
}

/// Takes the flush of a write back.
#[derive(Debug)]
struct Flushed {
    queue: Weak<BlkQueue>,
    /// The write, as it should have been taken.
    op: IoOp,
}

impl Volatile {
    pub(super) fn new(ctx: &AioContext, queue: Weak<BlkQueue>) -> Self {
        let flush = ctx.bottom_half(move |_| {
            if let Some(queue) = queue.upgrade() {
                queue.flush_volatile();
            }
        });
        Self {
            waiting: Vec::new(),
            flush,
        }
    }

    pub(super) fn push(&mut self, request: Box<IoRequest>) {
        self.waiting.push(request);
        self.flush.schedule();
    }
}

impl Completer for Flushed {
    fn complete(&self, mut request: Box<IoRequest>) {
        request.op = self.op;
        if let Some(queue) = self.queue.upgrade() {
            queue.complete(request);
        }
    }
}

impl BlkQueue {
    fn flush_volatile(&self) {
        let _scope = DeferScope::enter();
        let requests = std::mem::take(&mut self.state.borrow_mut().volatile.waiting);
        for mut request in requests {
            let queue = Weak::clone(&self.me);
            let op = durable(request.op);
            request.op = IoOp::Flush;
            let completer = Rc::new(Flushed { queue, op }) as Rc<dyn Completer>;
            self.channel.submit(&mut vec![request], &completer);
        }
    }
}

impl State {
    /// Whether a write has succeeded that the driver may take for stable, and that may not be.
    pub(super) fn is_volatile(&self, request: &IoRequest) -> bool {
        self.write_through && request.result.is_ok() && durable(request.op) != request.op
    }
}

/// The same, stable before it completes.
fn durable(op: IoOp) -> IoOp {
    match op {
        IoOp::Write { .. } => IoOp::Write { durable: true },
        IoOp::WriteZeroes { .. } => IoOp::WriteZeroes { durable: true },
        other => other,
    }
}
