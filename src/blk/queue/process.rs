//! From the kick to the engine, and from the completion to the used ring.
//!
//! IOThread only, and the request path: no lock, no allocation once the queue has warmed up.

use super::running::{Collected, QueueError};
use super::{BlkQueue, State};
use crate::blk::state::DeviceState;
use crate::blk::stats::RingState;
use crate::defer::DeferScope;
use crate::io::{Completer, IoRequest, Requests};

impl BlkQueue {
    /// Takes what the driver made available, within the budget of a visit, and hands it to the engine.
    ///
    /// Returns whether there was anything.
    pub(super) fn process(&self) -> bool {
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
        if state.may_have_lost() {
            collected = self.take_again(&mut state, batch, collected);
        }
        if let Some(slow) = &mut state.slow {
            slow.begin(batch);
        }
        let collected = collected.unwrap_or_else(|error| {
            self.fail(&mut state, &error);
            // What was answered before the error is still to be shown.
            Collected {
                answered: true,
                ..Collected::default()
            }
        });
        if let Some(missing) = collected.missing {
            self.pause(&mut state, missing);
        }
        collected
    }

    /// Stops a ring that cannot be trusted any more: everything else goes on.
    pub(super) fn fail(&self, state: &mut State, error: &QueueError) {
        // Zeroes in the place of lost memory look like all kinds of mistakes.
        let lost = match state.may_have_lost() {
            true => self.find_lost(state),
            false => None,
        };
        let error = lost.as_ref().unwrap_or(error);
        if let Some(suppressed) = self.device.log.pass("broken", self.index) {
            tracing::error!(
                disk = self.device.name,
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

    /// Answers a request that is over.
    pub(super) fn answer(&self, request: Box<IoRequest>) {
        self.state.borrow_mut().complete(request);
        self.publication.defer();
    }
}

impl Completer for BlkQueue {
    fn complete(&self, request: Box<IoRequest>) {
        if request.result.is_err() {
            return self.trouble(request);
        }
        self.answer(request);
    }

    fn complete_batch(&self, done: &mut Requests, more: bool) {
        self.complete_now(done, more);
    }
}

impl State {
    /// Takes requests until the ring is empty or the budget of a visit is used up.
    fn collect(&mut self, device: &DeviceState, batch: &mut Requests) -> Result<Collected, QueueError> {
        let Some(running) = &mut self.running else {
            return Ok(Collected::default());
        };
        let before = batch.len();
        let rules = device.rules(self.write_through);
        let result = running.take(&rules, &self.stats, self.polled, &mut self.free, batch);
        self.in_flight += u16::try_from(batch.len() - before).expect("bounded by the budget");
        result
    }

    /// Takes the requests of a batch again; those that cannot be executed any more are answered.
    pub(super) fn take_again(
        &mut self,
        device: &DeviceState,
        batch: &mut Requests,
    ) -> Result<(), QueueError> {
        let Some(running) = &mut self.running else {
            return Ok(());
        };
        let rules = device.rules(self.write_through);
        let mut result = Ok(());
        for mut request in std::mem::take(batch) {
            let taken = running.begin_again(&mut request, &rules, &self.stats);
            if matches!(taken, Ok(true)) {
                batch.push(request);
                continue;
            }
            self.in_flight -= 1;
            request.iov.clear();
            self.free.push(request);
            result = result.and(taken.map(drop));
        }
        result
    }

    /// Puts the answer to a request into the ring, or has it made stable first.
    pub(super) fn complete(&mut self, mut request: Box<IoRequest>) {
        if self.is_volatile(&request) {
            return self.volatile.push(request);
        }
        self.count_out();
        if let Some(running) = &mut self.running {
            running.complete(&self.stats, &request);
        }
        request.iov.clear();
        self.free.push(request);
    }

    /// Shows completed requests to the driver and notifies it if it wants that.
    pub(super) fn publish(&mut self) {
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
}
