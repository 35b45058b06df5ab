//! Flushes writes that were taken while the write cache was on, and that complete after it was switched off.
//!
//! Such a write may have missed the flush of the switch, so it gets a flush of its own before it is answered. VIRTIO
//! does not say whether it must be stable (1.3, 5.2.6.2), but a Linux guest whose cache is off does not flush it
//! either. Other requests only test a flag. IOThread only.

use std::rc::{Rc, Weak};

use crate::aio::BottomHalf;
use crate::engine::Channel;
use crate::io::{Completer, IoOp, IoRequest, Requests};

/// The writes of a queue that are still to be flushed.
#[derive(Debug)]
pub(super) struct LateFlush {
    waiting: Requests,
    /// Hands the writes to the engine later, because each comes back in the middle of something else.
    flush: BottomHalf,
}

impl LateFlush {
    /// Creates an empty list. `flush` submits what waits in it.
    pub(super) fn new(flush: BottomHalf) -> Self {
        Self {
            waiting: Vec::new(),
            flush,
        }
    }

    #[cold]
    pub(super) fn push(&mut self, request: Box<IoRequest>) {
        self.waiting.push(request);
        self.flush.schedule();
    }

    /// Returns the writes to flush now.
    pub(super) fn take(&mut self) -> Requests {
        std::mem::take(&mut self.waiting)
    }
}

/// Gets the flush of a write back.
#[derive(Debug)]
struct Flushed {
    queue: Weak<dyn Completer>,
    /// The operation that the write should have been.
    op: IoOp,
}

impl Completer for Flushed {
    fn complete(&self, mut request: Box<IoRequest>) {
        request.op = self.op;
        if let Some(queue) = self.queue.upgrade() {
            queue.complete(request);
        }
    }
}

/// Submits a flush for each of these writes. `queue` then gets the write, which counts as stable.
pub(super) fn submit(writes: Requests, channel: &Channel, queue: &Rc<dyn Completer>) {
    for mut request in writes {
        let (queue, op) = (Rc::downgrade(queue), durable(request.op));
        request.op = IoOp::Flush;
        let completer = Rc::new(Flushed { queue, op }) as Rc<dyn Completer>;
        channel.submit(&mut vec![request], &completer);
    }
}

/// True for a write that has succeeded, and that may not be stable.
#[inline]
pub(super) fn is_unflushed(request: &IoRequest) -> bool {
    request.result.is_ok() && durable(request.op) != request.op
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
