//! Flushes writes that were taken while the write cache was on, and that complete after it was switched off.
//!
//! Such a write may have missed the flush of the switch, so it gets a flush of its own before it is answered. VIRTIO
//! does not say whether it must be stable (1.3, 5.2.6.2), but a Linux guest whose cache is off does not flush it
//! either. Other requests only test a flag. IOThread only.

use std::rc::{Rc, Weak};

use super::{BlkQueue, State, bottom_half};
use crate::aio::{AioContext, BottomHalf};
use crate::defer::DeferScope;
use crate::io::{Completer, IoOp, IoRequest, Requests};

/// The writes of a queue that are still to be flushed.
#[derive(Debug)]
pub(super) struct LateFlush {
    waiting: Requests,
    /// Hands the writes to the engine later, because each comes back in the middle of something else.
    flush: BottomHalf,
}

/// Gets the flush of a write back.
#[derive(Debug)]
struct Flushed {
    queue: Weak<BlkQueue>,
    /// The operation that the write should have been.
    op: IoOp,
}

impl LateFlush {
    pub(super) fn new(ctx: &AioContext, queue: &Weak<BlkQueue>) -> Self {
        Self {
            waiting: Vec::new(),
            flush: bottom_half(ctx, queue, BlkQueue::flush_late),
        }
    }

    #[cold]
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
    fn flush_late(&self) {
        let _scope = DeferScope::enter();
        let requests = std::mem::take(&mut self.state.borrow_mut().late_flush.waiting);
        for mut request in requests {
            let queue = Weak::clone(&self.me);
            let op = durable(request.op);
            request.op = IoOp::Flush;
            let completer = Rc::new(Flushed { queue, op }) as Rc<dyn Completer>;
            self.channel.borrow().submit(&mut vec![request], &completer);
        }
    }
}

impl State {
    /// True for a write that has succeeded, that the driver may consider stable, and that may not be stable.
    #[inline]
    pub(super) fn is_unflushed(&self, request: &IoRequest) -> bool {
        self.write_through && request.result.is_ok() && durable(request.op) != request.op
    }
}

/// Returns the same operation, stable before it completes.
fn durable(op: IoOp) -> IoOp {
    match op {
        IoOp::Write { .. } => IoOp::Write { durable: true },
        IoOp::ZeroedWrite { unmap, .. } => IoOp::ZeroedWrite { durable: true, unmap },
        IoOp::WriteZeroes { .. } => IoOp::WriteZeroes { durable: true },
        other => other,
    }
}
