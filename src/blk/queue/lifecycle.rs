//! Moves a queue's ring from one phase to the next, from its start to its stop. IOThread only.

use std::sync::mpsc::Sender;

use super::phase::{Phase, Stage, Stopped};
use super::ring::{Missing, QueueError, Ring, Stop};
use super::{BlkQueue, State};
use crate::blk::notice::Notice;

impl BlkQueue {
    /// Stops a ring that cannot be trusted any more. Everything else goes on.
    #[cold]
    pub(super) fn fail(&self, state: &mut State, error: &QueueError) {
        // Zeroes in place of lost memory look like all kinds of mistakes.
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
        let (queue, notices) = (self.index, self.device.notices());
        notices.tell(|| Notice::RingBroken {
            queue,
            reason: error.to_string(),
        });
        state.stats.broken.add(1);
        state.change_phase(Phase::fail);
        state.notifier.report_broken();
    }

    /// Takes nothing from the ring until the frontend gives back the memory that is missing.
    #[cold]
    pub(super) fn pause(&self, state: &mut State, missing: Missing) {
        if state.change_phase(|phase| phase.pause(missing))
            && let Some(suppressed) = self.device.log.pass("paused", self.index)
        {
            tracing::info!(
                disk = self.device.name,
                queue = self.index,
                %missing,
                suppressed,
                "ring paused until the frontend gives back memory that it has removed"
            );
        }
    }
}

impl State {
    /// Returns the ring if chains may be taken from it.
    #[inline]
    pub(super) fn active_ring(&mut self) -> Option<&mut Ring> {
        match self.enabled && !self.quiesced {
            true => self.phase.running_ring(),
            false => None,
        }
    }

    /// The only way from one phase to another.
    fn change_phase<T>(&mut self, change: impl FnOnce(&mut Phase) -> T) -> T {
        let result = change(&mut self.phase);
        self.stats.state.set(self.phase.reported());
        self.count_in_flight();
        result
    }

    /// Shows how many chains the queue owns.
    #[inline]
    pub(super) fn count_in_flight(&self) {
        let owned = self.phase.ring().map_or(0, |ring| ring.owned.len());
        self.stats.in_flight.set(owned as u64);
    }

    /// A ring is set up. `kicked`: it need not wait for the first kick.
    pub(super) fn start_ring(&mut self, ring: Box<Ring>, kicked: bool) {
        let stage = Stage::new(kicked);
        self.change_phase(|phase| *phase = Phase::Started { ring, stage });
    }

    /// A kick starts a ring that waits for the first one.
    #[inline]
    pub(super) fn kick_ring(&mut self) {
        if !self.phase.is_running() {
            self.first_kick();
        }
    }

    #[cold]
    fn first_kick(&mut self) {
        self.change_phase(Phase::kick);
    }

    /// Returns whether the ring was paused. Its memory is back.
    pub(super) fn resume_ring(&mut self) -> bool {
        self.change_phase(Phase::resume)
    }

    /// No more chains are taken.
    pub(super) fn begin_stop(&mut self, stop: Stop, done: Sender<u16>) {
        self.change_phase(|phase| phase.stop(stop, done));
    }

    /// Ends a stop once nothing is in flight.
    ///
    /// A worker that was asked to help with a batch may still be on its way (`engine::file::share`). It finds nothing,
    /// because all requests that it could have taken are back.
    pub(super) fn finish_stop(&mut self) {
        if !self.phase.has_drained() {
            return;
        }
        self.publish();
        let stopped = self.change_phase(Phase::finish_stop);
        self.notifier.ring_stopped();
        let kick = self.last_kick.take();
        if let Some(Stopped { base, has_work, done }) = stopped {
            if let Some(kick) = kick.filter(|_| has_work) {
                self.notifier.leave_kick(kick);
            }
            // The session may be gone.
            let _ = done.send(base);
        }
    }
}
