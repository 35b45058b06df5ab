//! How a queue learns that there are requests: kicks, polling, or a timer where there is no kick eventfd.

use std::fs::File;
use std::rc::{Rc, Weak};
use std::time::Duration;

use vmm_sys_util::epoll::EventSet;

use super::{BlkQueue, State};
use crate::aio::{self, AioContext, FdHandler, Poller, Timer};
use crate::eventfd;
use crate::virtqueue::RingError;

/// How often a ring without a kick eventfd is looked at.
const TIMER_INTERVAL: Duration = Duration::from_millis(1);

/// Where kicks come from. Dropping it ends them.
#[derive(Debug)]
pub(super) enum KickSource {
    EventFd { _handler: FdHandler },
    Timer { _timer: Timer },
}

impl KickSource {
    /// True if the ring needs no kick to start.
    pub(super) fn is_implicit(&self) -> bool {
        matches!(self, Self::Timer { .. })
    }
}

impl BlkQueue {
    /// Replaces the kick eventfd; `None` has the ring looked at by a timer.
    ///
    /// # Errors
    /// A file that cannot be waited for; the old one stays.
    pub fn set_kick(&self, kick: Option<File>) -> Result<(), aio::Error> {
        let source = match kick {
            Some(file) => self.kick_from(file)?,
            None => self.kick_from_timer(),
        };
        let mut state = self.state.borrow_mut();
        state.kicked |= source.is_implicit();
        let old = state.kick.replace(source);
        drop(state);
        drop(old);
        // A kick that went to the old eventfd must not be lost.
        self.process();
        Ok(())
    }

    fn kick_from(&self, file: File) -> Result<KickSource, aio::Error> {
        let file = Rc::new(file);
        let (reader, queue) = (Rc::clone(&file), Weak::clone(&self.me));
        let handler = self.ctx.add_fd(file, EventSet::IN, move |_, _| {
            if let Some(queue) = queue.upgrade() {
                queue.kicked(&reader);
            }
        })?;
        Ok(KickSource::EventFd { _handler: handler })
    }

    fn kick_from_timer(&self) -> KickSource {
        let queue = Weak::clone(&self.me);
        let timer = self.ctx.timer(move |_| {
            if let Some(queue) = queue.upgrade() {
                let progress = queue.process();
                let state = queue.state.borrow();
                if let Some(poller) = state.poller.as_ref().filter(|_| progress) {
                    poller.wake();
                }
                if let Some(KickSource::Timer { _timer: timer }) = &state.kick {
                    timer.arm_in(TIMER_INTERVAL);
                }
            }
        });
        timer.arm_in(TIMER_INTERVAL);
        KickSource::Timer { _timer: timer }
    }

    fn kicked(&self, kick: &File) {
        if let Err(error) = eventfd::drain(kick) {
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
        if let Some(poller) = &state.poller {
            poller.wake();
        }
        state.kicked |= state.running.is_some();
        state.disable_kicks();
        drop(state);
        self.process();
        self.check_shared();
    }
}

impl Poller for BlkQueue {
    fn poll(&self, _ctx: &AioContext) -> bool {
        match self.has_work() {
            Ok(work) => work && self.process(),
            Err(error) => {
                self.fail(&mut self.state.borrow_mut(), &error.into());
                true
            }
        }
    }

    fn poll_begin(&self) {
        let mut state = self.state.borrow_mut();
        state.polled = true;
        state.disable_kicks();
    }

    fn poll_end(&self) -> bool {
        let mut state = self.state.borrow_mut();
        state.polled = false;
        if state.paused.is_none()
            && let Some(running) = &mut state.running
        {
            running.ring.enable_kicks();
        }
        drop(state);
        // An error is work as well: `poll` deals with it.
        self.has_work().unwrap_or(true)
    }

    fn is_busy(&self) -> bool {
        self.state.borrow().in_flight > 0
    }
}

impl State {
    /// Tells the driver that the ring is looked at anyway, if it is.
    fn disable_kicks(&mut self) {
        if self.is_active()
            && let Some(running) = &mut self.running
        {
            running.ring.disable_kicks();
        }
    }
}

impl BlkQueue {
    fn has_work(&self) -> Result<bool, RingError> {
        let state: &mut State = &mut self.state.borrow_mut();
        if !state.is_active() {
            return Ok(false);
        }
        state
            .running
            .as_mut()
            .map_or(Ok(false), |running| running.ring.has_work())
    }
}
