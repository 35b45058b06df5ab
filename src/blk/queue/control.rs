//! What the control thread asks of a queue: set up, change, and stop its ring. Kicks are `poll`'s.
//!
//! Everything here runs on the IOThread, between two visits.

use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use super::running::{Missing, Running};
use super::{BlkQueue, State};
use crate::blk::stats::RingState;
use crate::memory::{GuestMemory, RingLog};
use crate::virtqueue::{InflightArea, RingAddresses, RingError, RingFeatures};

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

/// What becomes of requests that are held for lack of room when their ring stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// After one more try they are left for whoever serves the ring next and is told where to go on (GET_VRING_BASE).
    HandOver,
    /// They stay in flight at once, if the ring is tracked: the frontend takes the in-flight region along
    /// (GET_VRING_BASE_INFLIGHT).
    Suspend,
    /// Nobody is told where to go on. They stay in flight if the ring is tracked. Else they get one more try, and then an
    /// error.
    End,
}

impl BlkQueue {
    /// Sets up the ring. It runs with the first kick, so the kick eventfd is to be set after this.
    ///
    /// No kick is waited for if something is available already. Its kick may be lost: a predecessor has taken it and
    /// stopped, or has told the driver that none is needed. A ring that goes on where a predecessor has stopped also
    /// notifies once, for the same reason; then returns the number of requests that were in flight.
    ///
    /// # Errors
    /// Addresses, sizes and indices that do not do; an in-flight region that makes no sense.
    pub fn start(&self, setup: RingSetup) -> Result<Option<usize>, RingError> {
        let (mut running, resumed, lost) = Running::new(setup)?;
        if lost > 0 {
            self.report_lost_requests(lost);
        }
        // A predecessor that was killed while it polled has left the driver told not to kick.
        running.ring.enable_kicks();
        let left_in_flight = running.ring.left_in_flight();
        // After that, so that whatever comes later is kicked. An impossible index is nobody's before the first kick.
        let kicked = resumed || running.ring.has_work().unwrap_or(false);
        let poller = self
            .ctx
            .add_poller(self.me.upgrade().expect("called on a live queue"));
        let mut state = self.state.borrow_mut();
        (state.kicked, state.broken, state.losses) = (kicked, false, None);
        state.paused = None;
        state.unshared.reset();
        state.stats.state.set(RingState::Running);
        state.running = Some(running);
        state.poller = Some(poller);
        if resumed {
            state.notifier.ring_resumed();
        }
        Ok(resumed.then_some(left_in_flight))
    }

    /// A predecessor has taken requests, and nobody knows which.
    #[cold]
    fn report_lost_requests(&self, requests: u16) {
        if let Some(suppressed) = self.device.log.pass("lost requests", self.index) {
            tracing::error!(
                disk = self.device.name,
                queue = self.index,
                requests,
                suppressed,
                "the queue's last backend took requests and left no word of them: they are never answered. If the guest \
                 hangs, reset it. To avoid this, stop the other backend when no request is in flight"
            );
        }
    }

    /// Stops the ring: nothing more is taken; when the last request in flight is answered, or left as `stop` says, `done`
    /// gets the available index to go on at, and nothing is written to the ring or signalled any more.
    pub fn stop(&self, stop: Stop, done: Sender<u16>) {
        let mut state = self.state.borrow_mut();
        state.stopping = Some((stop, done));
        let handlers = (state.kick.take(), state.poller.take());
        drop(state);
        drop(handlers);
        self.release_held();
        self.channel.release_waiting();
        self.state.borrow_mut().finish_stop();
    }

    /// Switches the processing of the ring on or off (SET_VRING_ENABLE).
    pub fn set_enabled(&self, enabled: bool) {
        self.state.borrow_mut().enabled = enabled;
        self.process();
    }

    /// Switches the write cache off or on. While it is off, every write is stable before it is answered, also one that
    /// was taken before; what was answered before is for the caller to flush.
    pub fn set_write_through(&self, on: bool) {
        self.state.borrow_mut().write_through = on;
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
    ///
    /// A frontend may take a region away and give it back. So a ring that is not in the table, or whose next chain uses
    /// memory that is away, pauses until a table has it again.
    pub fn set_memory(&self, memory: &Arc<GuestMemory>) {
        let mut state = self.state.borrow_mut();
        let paused = state.paused;
        let Some(running) = &mut state.running else { return };
        let missing = match running.remap(memory) {
            Err(_) => Some(Missing::Ring),
            Ok(()) => paused.filter(|&missing| running.misses(missing)),
        };
        match missing {
            Some(missing) => self.pause(&mut state, missing),
            None => {
                if state.paused.take().is_some()
                    && let Some(running) = &mut state.running
                {
                    // While it was paused, the driver may have been told not to kick.
                    running.ring.enable_kicks();
                }
                drop(state);
                // Kicks may have come meanwhile.
                self.process();
            }
        }
    }

    /// Takes nothing from the ring until the frontend gives back the memory that is missing.
    #[cold]
    pub(super) fn pause(&self, state: &mut State, missing: Missing) {
        let paused_before = state.paused.replace(missing).is_some();
        if !paused_before && let Some(suppressed) = self.device.log.pass("paused", self.index) {
            let missing = missing.to_string();
            tracing::info!(
                disk = self.device.name,
                queue = self.index,
                missing,
                suppressed,
                "ring paused until the frontend gives back memory that it has removed"
            );
        }
    }

    /// Logs what a running ring writes from here on, or no more.
    pub fn set_log(&self, log: Option<RingLog>) {
        if let Some(running) = &mut self.state.borrow_mut().running {
            running.set_log(log);
        }
    }
}

impl State {
    /// Counts a request out of flight, and ends a stop that waits for the last one.
    ///
    /// This is the only place where `in_flight` becomes less, so that no stop is left waiting. A bottom half ends the
    /// stop: the caller may be in the middle of something.
    pub(super) fn count_out(&mut self) {
        self.in_flight -= 1;
        if self.in_flight == 0 && self.stopping.is_some() {
            self.stopped.schedule();
        }
    }

    /// Answers whoever stops the ring, once nothing is in flight.
    ///
    /// A worker that was asked to help with a batch may still be on its way (`engine::share`): it finds nothing, for all
    /// that it could have had is back.
    pub(super) fn finish_stop(&mut self) {
        let Some((stop, done)) = self.stopping.take_if(|_| self.in_flight == 0) else {
            return;
        };
        self.publish();
        if let Some(mut running) = self.running.take() {
            running.leave_to_successor(stop);
            // Whoever serves the ring next waits for kicks.
            running.ring.leave_kicks_enabled();
            self.base = running.ring.next_avail();
        }
        (self.kicked, self.polled) = (false, false);
        self.stats.state.set(RingState::Stopped);
        self.notifier.ring_stopped();
        // Whoever asked may have gone.
        let _ = done.send(self.base);
    }
}
