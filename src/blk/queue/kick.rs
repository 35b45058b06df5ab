//! Notices that there are requests: by kicks, by polling, or by a timer if there is no kick eventfd.

use std::fs::File;
use std::io;
use std::rc::Weak;
use std::sync::Arc;

use super::kick_source::KickSource;
use super::phase::{Phase, Stage};
use super::{BlkQueue, State, timer};
use crate::aio::{self, Poller};
use crate::virtqueue::RingError;

impl BlkQueue {
    /// Replaces the kick eventfd. Without one, a timer checks the ring.
    ///
    /// # Errors
    /// The file cannot be watched. The old one stays.
    pub fn set_kick(&self, kick: Option<Arc<File>>) -> Result<(), aio::Error> {
        let source = match kick {
            Some(file) => self.kick_from(file)?,
            None => KickSource::timer(timer(&self.ctx, &self.me, Self::check_without_kick)),
        };
        let mut state = self.state.borrow_mut();
        let is_timer = matches!(source, KickSource::Timer(_));
        let old = state.kick.replace(source);
        // A kick that went to the old eventfd must not be lost, nor the first one, which starts the ring. Without an
        // eventfd no kick will ever start it.
        if is_timer || state.has_work_before_kick() {
            state.kick_ring();
        }
        drop(state);
        drop(old);
        self.process();
        Ok(())
    }

    fn kick_from(&self, file: Arc<File>) -> Result<KickSource, aio::Error> {
        let queue = Weak::clone(&self.me);
        KickSource::eventfd(&self.ctx, file, move |kick| {
            if let Some(queue) = queue.upgrade() {
                queue.kicked(kick);
            }
        })
    }

    /// Checks a ring without a kick eventfd.
    fn check_without_kick(&self) {
        let progress = self.process();
        let state = self.state.borrow();
        if progress {
            state.wake_poller();
        }
        if let Some(kick) = &state.kick {
            kick.check_again();
        }
    }

    fn kicked(&self, kick: io::Result<()>) {
        if let Err(error) = kick {
            if let Some(suppressed) = self.device.log.pass("kick eventfd", self.index) {
                tracing::warn!(
                    disk = self.device.name, queue = self.index, %error, suppressed,
                    "kick eventfd cannot be read, and is dropped"
                );
            }
            let old = self.state.borrow_mut().kick.take();
            drop(old);
            return;
        }
        let mut state = self.state.borrow_mut();
        state.stats.kicks.add(1);
        state.wake_poller();
        state.kick_ring();
        state.disable_kicks();
        state.missed_kick.look_later();
        drop(state);
        self.process();
        self.check_shared();
    }

    /// Checks the ring after a kick, until something was in it.
    #[inline]
    fn check_shared(&self) {
        if !self.state.borrow().unshared.has_seen() {
            self.look_for_requests();
        }
    }

    #[cold]
    fn look_for_requests(&self) {
        let mut state = self.state.borrow_mut();
        let active = state.active_ring().is_some();
        let State { phase, unshared, .. } = &mut *state;
        if let Some(ring) = phase.ring() {
            unshared.look(&ring.split, active, &self.device);
        }
    }

    /// Serves requests that have waited for a kick for too long.
    pub(super) fn look_for_missed_kick(&self) {
        let mut state = self.state.borrow_mut();
        let waiting = state.active_ring().and_then(|ring| {
            let waits = !ring.polled && ring.split.has_work().unwrap_or(false);
            waits.then(|| ring.split.next_avail())
        });
        if !state.missed_kick.look(waiting) {
            return;
        }
        state.stats.missed_kicks.add(1);
        state.wake_poller();
        drop(state);
        tracing::debug!(
            disk = self.device.name,
            queue = self.index,
            index = waiting,
            "serving requests whose kick has not come"
        );
        self.process();
    }

    fn has_work(&self) -> Result<bool, RingError> {
        match self.state.borrow_mut().active_ring() {
            Some(ring) => ring.split.has_work(),
            None => Ok(false),
        }
    }
}

impl Poller for BlkQueue {
    fn poll(&self) -> bool {
        match self.has_work() {
            Ok(work) => {
                let progress = work && self.process();
                if progress {
                    self.state.borrow().stats.poll_hits.add(1);
                }
                progress
            }
            Err(error) => {
                self.fail(&mut self.state.borrow_mut(), &error.into());
                true
            }
        }
    }

    fn waits_for_others(&self) -> bool {
        self.channel.borrow().waits_for_others()
    }

    fn poll_begin(&self) {
        let mut state = self.state.borrow_mut();
        if let Some(ring) = state.phase.ring_mut() {
            ring.polled = true;
        }
        state.disable_kicks();
    }

    fn poll_end(&self) -> bool {
        let mut state = self.state.borrow_mut();
        if let Some(ring) = state.phase.ring_mut() {
            ring.polled = false;
        }
        if let Phase::Started {
            ring,
            stage: Stage::Waiting | Stage::Running,
        } = &mut state.phase
        {
            ring.split.enable_kicks();
            state.missed_kick.look_later();
        }
        // An error counts as work: `poll` deals with it.
        state
            .active_ring()
            .is_some_and(|ring| ring.split.has_work().unwrap_or(true))
    }
}

impl State {
    /// Returns whether something is available in a ring that waits for its first kick. An invalid index is reported only
    /// after that.
    fn has_work_before_kick(&mut self) -> bool {
        match &mut self.phase {
            Phase::Started {
                ring,
                stage: Stage::Waiting,
            } => ring.split.has_work().unwrap_or(false),
            _ => false,
        }
    }

    /// Tells the driver that it need not kick, if the ring is checked anyway.
    fn disable_kicks(&mut self) {
        if let Some(ring) = self.active_ring() {
            ring.split.disable_kicks();
        }
    }

    /// Makes the IOThread poll the ring again, if it had been idle.
    fn wake_poller(&self) {
        if let Some(poller) = self.phase.ring().and_then(|ring| ring.poller.as_ref()) {
            poller.wake();
        }
    }
}
