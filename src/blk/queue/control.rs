//! Commands of the control thread to a queue: set up, change, and stop its ring. (`kick` has SET_VRING_KICK.)
//!
//! They run on the IOThread, between two visits.

use std::fs::File;
use std::mem;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use super::kick_source::KickSource;
use super::ring::{Missing, Ring, RingSetup, Stop};
use super::{BlkQueue, State};
use crate::memory::{GuestMemory, RingLog};
use crate::virtqueue::RingError;

/// The state of a queue, as far as it matters to a process that takes over.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// The ring may run (SET_VRING_ENABLE).
    pub enabled: bool,
    /// Number of chains that the queue owns.
    pub owned: usize,
    /// The ring waits for memory.
    pub paused: bool,
}

impl BlkQueue {
    /// Sets up the ring. It runs from the first kick on, so set the kick eventfd after this.
    ///
    /// If something is available already, the ring does not wait for a kick. The kick may be lost: a predecessor has
    /// taken it and stopped, or has told the driver not to kick. A ring that continues where a predecessor stopped also
    /// notifies the driver once, for the same reason. Then this returns the number of requests that were in flight.
    ///
    /// # Errors
    /// An address, a size or an index is invalid, or the in-flight region is.
    pub fn start(&self, setup: RingSetup) -> Result<Option<usize>, RingError> {
        let (mut ring, predecessor) = Ring::new(setup, self.ctx.in_progress())?;
        ring.pin(&self.channel.borrow());
        if predecessor.lost > 0 {
            self.report_lost_requests(predecessor.lost);
        }
        // A predecessor that was killed while it polled has left the driver told not to kick.
        ring.split.enable_kicks();
        let left_in_flight = ring.split.left_in_flight();
        // Checked after kicks were enabled, so that what comes later is kicked. An invalid index is reported only after
        // the first kick.
        let kicked = predecessor.resumed || ring.split.has_work().unwrap_or(false);
        let poller = self.me.upgrade().expect("called on a live queue");
        ring.poller = Some(self.ctx.add_poller(poller));
        let mut state = self.state.borrow_mut();
        state.unshared.reset();
        state.start_ring(ring, kicked);
        state.signal_start();
        Ok(predecessor.resumed.then_some(left_in_flight))
    }

    /// A predecessor has taken requests without a trace of which.
    #[cold]
    fn report_lost_requests(&self, requests: u16) {
        if let Some(suppressed) = self.device.log.pass("lost requests", self.index) {
            tracing::error!(
                disk = self.device.name,
                queue = self.index,
                requests,
                suppressed,
                "the queue's last backend took requests and left no record of them: they are never answered. If the guest \
                 hangs, reset it. To avoid this, stop the other backend when no request is in flight"
            );
        }
    }

    /// Stops the ring: no more chains are taken. When the last request in flight is answered, or left as `stop` says,
    /// `done` gets the available index to continue at. From then on nothing is written to the ring or signalled.
    pub fn stop(&self, stop: Stop, done: Sender<u16>) {
        let mut state = self.state.borrow_mut();
        state.begin_stop(stop, done);
        let poller = state.phase.ring_mut().and_then(|ring| ring.poller.take());
        let kick = state.kick.take();
        drop(state);
        drop(poller);
        self.clear_kick(kick);
        self.release_held();
        self.channel.borrow().release_waiting();
        self.channel.borrow().give_up_soon();
        self.state.borrow_mut().finish_stop();
    }

    /// Clears the kick eventfd of a ring that stops. After a stop, QEMU takes a signal for a kick that nobody has served.
    fn clear_kick(&self, kick: Option<KickSource>) {
        let Some(KickSource::EventFd(kick)) = kick else {
            return;
        };
        let mut state = self.state.borrow_mut();
        if !state.phase.is_stopping() {
            // There is no ring, so nobody has served the kicks.
            return;
        }
        match kick.clear() {
            Ok(eventfd) => state.last_kick = Some(eventfd),
            Err(error) => state.notifier.warn(
                "kick eventfd cannot be cleared; the next backend may see a kick too many",
                &error,
            ),
        }
    }

    /// Returns what matters to a process that takes over.
    pub fn standing(&self) -> Standing {
        let state = self.state.borrow();
        Standing {
            enabled: state.enabled,
            owned: state.phase.ring().map_or(0, |ring| ring.owned.len()),
            paused: state.phase.missing().is_some(),
        }
    }

    /// Enables or disables the ring (SET_VRING_ENABLE).
    pub fn set_enabled(&self, enabled: bool) {
        let mut state = self.state.borrow_mut();
        state.enabled = enabled;
        state.signal_start();
        drop(state);
        self.process();
    }

    /// Switches the write cache off or on. While it is off, every write is stable before it is answered, also one that
    /// was taken before. The caller has to flush what was answered before.
    pub fn set_write_through(&self, on: bool) {
        self.state.borrow_mut().write_through = on;
    }

    /// Switches the coalescing of notifications on or off.
    ///
    /// When off, every completion is published and notified by itself, unless the driver has set NO_INTERRUPT.
    pub fn set_batch_notifications(&self, on: bool) {
        self.state.borrow_mut().coalescing = on;
        self.publication.set_coalescing(on);
    }

    /// Replaces the call eventfd. A ring that has started signals the new one once, because a call may have been lost
    /// with the old one. For a driver that waits for nothing this is a spurious interrupt.
    pub fn set_call(&self, call: Option<Arc<File>>) {
        let mut state = self.state.borrow_mut();
        let has_started = state.phase.ring().is_some_and(|ring| ring.has_signalled);
        state.notifier.set_call(call);
        if has_started {
            state.notifier.notify();
        }
    }

    /// Replaces the eventfd that reports a broken ring.
    pub fn set_err(&self, err: Option<Arc<File>>) {
        self.state.borrow_mut().notifier.set_err(err);
    }

    /// Makes the ring use a new memory table. Requests in flight keep the old one.
    ///
    /// A frontend may remove a region and give it back. So a ring pauses if the table lacks a part of it, or memory
    /// that its next chain uses, until a table has that again.
    pub fn set_memory(&self, memory: &Arc<GuestMemory>) {
        let mut state = self.state.borrow_mut();
        let missed = state.phase.missing();
        let Some(ring) = state.phase.ring_mut() else {
            return;
        };
        let missing = match ring.remap(memory) {
            Err(_) => Some(Missing::Ring),
            Ok(()) => missed.filter(|&missing| ring.misses(missing)),
        };
        ring.pin(&self.channel.borrow());
        if let Some(missing) = missing {
            return self.pause(&mut state, missing);
        }
        if state.resume_ring()
            && let Some(ring) = state.phase.ring_mut()
        {
            // While the ring was paused, the driver may have been told not to kick.
            ring.split.enable_kicks();
        }
        drop(state);
        // Kicks may have come meanwhile.
        self.process();
    }

    /// Logs what a running ring writes from now on, or stops logging.
    pub fn set_log(&self, log: Option<RingLog>) {
        if let Some(ring) = self.state.borrow_mut().phase.ring_mut() {
            ring.set_log(log);
        }
    }
}

impl State {
    /// Signals the call eventfd of a ring once, when it is set up and enabled: a predecessor may have stopped before it
    /// could notify. libvhost-user signals every ring, and QEMU's tests wait for it.
    fn signal_start(&mut self) {
        let enabled = self.enabled;
        if let Some(ring) = self.phase.ring_mut()
            && enabled
            && !mem::replace(&mut ring.has_signalled, true)
        {
            self.notifier.notify();
        }
    }
}
