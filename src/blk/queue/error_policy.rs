//! Applies the error policy to requests that the disk could not execute: they are reported, ignored, or held until
//! there is room (`retry`).
//!
//! IOThread only, and only after a failure: a request that succeeds at once never comes here.

use super::phase::Stage;
use super::ring::Stop;
use super::{BlkQueue, State};
use crate::blk::error_policy::Verdict;
use crate::blk::failures::Place;
use crate::io::{IoOp, IoRequest};

impl BlkQueue {
    /// Decides about a request that failed.
    #[cold]
    pub(super) fn failed(&self, request: Box<IoRequest>) {
        let Err(error) = &request.result else {
            return self.answer(request);
        };
        if error.raw_os_error() == Some(libc::ECANCELED) && self.state.borrow().phase.is_stopping() {
            // The disk did not answer, and the ring cannot wait.
            return self.give_up(request);
        }
        let verdict = self.verdict(&request, error);
        let failures = &self.device.failures;
        failures.failed(&self.place(&request), request.op, verdict, error);
        match verdict {
            Verdict::Report => self.answer(request),
            Verdict::Ignore => self.ignore(request),
            Verdict::Hold => self.hold(request),
        }
    }

    pub(super) fn verdict(&self, request: &IoRequest, error: &std::io::Error) -> Verdict {
        let policy = &self.device.failures.policy;
        policy.verdict(request.op, error, self.device.below.view().node.flushes_fail())
    }

    pub(super) fn place(&self, request: &IoRequest) -> Place<'_> {
        Place {
            disk: &self.device.name,
            queue: self.index,
            op: request.op.name(),
            sector: request.first_byte().map(|byte| self.sector(byte)),
        }
    }

    /// Returns the sector of the disk at this byte of the node below.
    fn sector(&self, byte: u64) -> u64 {
        byte.saturating_sub(self.device.below.view().start) / 512
    }

    /// Tells the guest that all is well. The parts of a read that are really missing read as zeroes.
    fn ignore(&self, mut request: Box<IoRequest>) {
        self.state.borrow().stats.ignored.add(1);
        if request.op == IoOp::Read {
            request.op = IoOp::Salvage;
            self.channel
                .borrow()
                .submit(&mut vec![request], &self.completer());
            return;
        }
        request.result = Ok(());
        self.answer(request);
    }

    /// Ends a request that cannot be held any longer, because its ring stops. The next backend of the ring finishes it.
    /// If nobody would know of it, the guest gets an error.
    pub(super) fn give_up(&self, mut request: Box<IoRequest>) {
        let mut state = self.state.borrow_mut();
        if state.leaves_held_requests()
            && let Some(ring) = state.phase.ring_mut()
        {
            ring.owned.leave(request.token);
            request.stages = None;
            return state.recycle(request);
        }
        drop(state);
        self.report(request);
    }

    /// Answers a request that cannot be held any longer with its error.
    pub(super) fn report(&self, request: Box<IoRequest>) {
        if let Err(error) = &request.result {
            self.device
                .failures
                .failed(&self.place(&request), request.op, Verdict::Report, error);
        }
        self.answer(request);
    }
}

impl State {
    /// True if the ring stops, or will stop, with held requests unanswered.
    pub(super) fn leaves_held_requests(&self) -> bool {
        match self.phase.stage() {
            Some(Stage::Stopping {
                stop: Stop::HandOver | Stop::Suspend,
                ..
            }) => true,
            _ => self.phase.ring().is_some_and(|ring| ring.split.is_tracked()),
        }
    }
}
