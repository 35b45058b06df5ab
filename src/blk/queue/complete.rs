//! Completions: answers requests, publishes the answers, and notifies the driver.
//!
//! Like `visit`, this is the request path. An answer is a status byte and a used element. The driver sees it once the
//! used index is published, which happens at the end of the outermost defer scope.

use std::io;
use std::rc::Rc;

use probe::probe_lazy;

use super::ownership::Slot;
use super::ring::Ring;
use super::{BlkQueue, State, late_flush};
use crate::blk::error_policy::is_unsupported;
use crate::blk::latency::Operation;
use crate::blk::request::Status;
use crate::blk::stats::QueueStats;
use crate::defer::DeferScope;
use crate::io::{Completer, IoOp, IoRequest, IoVecs, Requests};

impl Completer for BlkQueue {
    fn complete(&self, request: Box<IoRequest>) {
        if request.result.is_err() {
            return self.failed(request);
        }
        self.answer(request);
    }

    /// Answers requests that were executed without an error while their batch was submitted; `more` of it follow.
    fn complete_batch(&self, done: &mut Requests, more: bool) {
        let mut early = self.early.get();
        let due = early.is_due(done.len(), more);
        self.early.set(early);
        let mut state = self.state.borrow_mut();
        if state.coalescing {
            done.drain(..).for_each(|request| state.complete(request));
            drop(state);
            self.publication.defer();
        } else {
            drop(state);
            done.drain(..).for_each(|request| self.answer(request));
        }
        // With several queues the driver has something to do meanwhile, and every notification costs both sides.
        if due {
            self.publish();
        }
    }
}

impl BlkQueue {
    pub(super) fn completer(&self) -> Rc<dyn Completer> {
        self.me.upgrade().expect("called on a live queue")
    }

    /// Flushes the writes that are late.
    pub(super) fn flush_late(&self) {
        let _scope = DeferScope::enter();
        let late = self.state.borrow_mut().late_flush.take();
        late_flush::submit(late, &self.channel.borrow(), &self.completer());
    }

    /// Answers a request that is over.
    pub(super) fn answer(&self, request: Box<IoRequest>) {
        self.state.borrow_mut().complete(request);
        self.publication.defer();
    }

    /// Shows answers to the driver. They may have gone into memory that is lost.
    pub(super) fn publish(&self) {
        let mut state = self.state.borrow_mut();
        state.publish();
        if state.may_have_lost() {
            self.check_after_publication(&mut state);
        }
    }
}

impl State {
    /// Puts the answer to a request into the ring, or makes its data stable first.
    #[inline]
    pub(super) fn complete(&mut self, mut request: Box<IoRequest>) {
        if self.write_through && late_flush::is_unflushed(&request) {
            return self.late_flush.push(request);
        }
        if request.stages.is_some() {
            self.trace_answer(&mut request);
        }
        if let Some(ring) = self.phase.ring_mut() {
            ring.complete(&self.stats, &request);
        }
        self.recycle(request);
    }

    #[cold]
    fn trace_answer(&mut self, request: &mut IoRequest) {
        if let Some(stages) = request.stages.take() {
            self.slow.answered(request, *stages, self.clock.read());
        }
    }

    /// Keeps a request that is not in flight any more for reuse, and ends what waits for the last one.
    #[inline]
    pub(super) fn recycle(&mut self, mut request: Box<IoRequest>) {
        request.iov.clear();
        self.free.push(request);
        if self.quiesced || self.phase.is_stopping() {
            self.check_drained();
        }
    }

    /// Shows answers to the driver, and notifies it if it wants that.
    pub(super) fn publish(&mut self) {
        let Some(ring) = self.phase.ring_mut() else { return };
        let completions = u64::from(ring.split.unpublished());
        if completions == 0 {
            return;
        }
        let event_idx = ring.split.features().event_idx;
        // Without coalescing every completion is notified, whatever `used_event` says: a driver that is slow to wake up
        // suppresses so many notifications that there would be nothing to compare.
        let wanted = ring.split.publish() || !self.coalescing && event_idx;
        ring.latencies.published(&self.stats, &self.clock);
        if self.slow.is_waiting() {
            self.slow.published(self.clock.read(), self.view.start);
        }
        probe_lazy!(
            vhost_user_blk,
            publish,
            std::ptr::from_ref(&*self.stats),
            completions,
            wanted
        );
        self.stats.completions.add(completions);
        self.stats.in_flight.set(ring.owned.len() as u64);
        self.notifier.completed(completions);
        if wanted {
            self.notifier.notify();
        } else if event_idx {
            self.missed.check_later();
        }
    }
}

impl Ring {
    /// Answers a request that came back from the engine.
    #[inline]
    fn complete(&mut self, stats: &QueueStats, request: &IoRequest) {
        let head = request.token;
        let Some(slot) = self.owned.release(head) else {
            return;
        };
        probe_lazy!(
            vhost_user_blk,
            complete,
            std::ptr::from_ref(stats),
            head,
            std::ptr::from_ref(request),
            request.result.is_err()
        );
        let operation = Operation::of(request.op);
        let (status, bytes, written) = match &request.result {
            Ok(()) => {
                self.latencies.answered(operation, slot.taken);
                (Status::Ok, slot.bytes, slot.written)
            }
            Err(error) => (failure(request.op, error, stats, operation), 0, 0),
        };
        count(stats, operation, bytes);
        // A read that failed may have written as well.
        let data = Some(&request.iov).filter(|_| request.op == IoOp::Read);
        self.answer(head, &slot, status, (written, data), stats);
    }

    /// Writes the status and the used element. `written` is the data in the chain: its size, and its memory.
    #[inline]
    pub(super) fn answer(
        &mut self,
        head: u16,
        slot: &Slot,
        status: Status,
        (written, data): (u32, Option<&IoVecs>),
        stats: &QueueStats,
    ) {
        if status != Status::Ok {
            stats.errors.add(1);
        }
        // SAFETY: the byte lies in guest memory that the slot keeps mapped; volatile because the guest shares it.
        unsafe { slot.status.write_volatile(status.byte()) };
        if let Some(log) = &self.log {
            slot.mark_dirty(log, data);
        }
        self.split.push_used(head, written + 1);
    }
}

/// Counts a request that is over.
#[inline]
fn count(stats: &QueueStats, operation: Option<Operation>, bytes: u64) {
    match operation {
        Some(Operation::Read) => {
            stats.reads.add(1);
            stats.read_bytes.add(bytes);
        }
        Some(Operation::Write) => {
            stats.writes.add(1);
            stats.written_bytes.add(bytes);
        }
        Some(Operation::Flush) => stats.flushes.add(1),
        Some(Operation::Unmap) => {
            stats.unmaps.add(1);
            stats.unmapped_bytes.add(bytes);
        }
        None => stats.others.add(1),
    }
}

/// Counts a request that failed, and returns its status.
#[cold]
fn failure(op: IoOp, error: &io::Error, stats: &QueueStats, operation: Option<Operation>) -> Status {
    match operation {
        Some(Operation::Read) => stats.read_errors.add(1),
        Some(Operation::Write) => stats.write_errors.add(1),
        Some(Operation::Flush) => stats.flush_errors.add(1),
        Some(Operation::Unmap) => stats.unmap_errors.add(1),
        None => {}
    }
    match is_unsupported(op, error) {
        true => Status::Unsupp,
        false => Status::IoErr,
    }
}
