//! The source of a queue's kicks: an eventfd, or a timer if the frontend gives none. IOThread only.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use crate::aio::{AioContext, Error, EventSet, FdHandler, Timer};

/// How often a ring without a kick eventfd is checked.
const INTERVAL: Duration = Duration::from_millis(1);

/// The source of kicks. Dropping it ends them.
#[derive(Debug)]
pub(super) enum KickSource {
    EventFd { _handler: FdHandler },
    Timer(Timer),
}

impl KickSource {
    /// Calls `kicked` with the eventfd whenever that can be read.
    pub(super) fn eventfd(
        ctx: &AioContext,
        eventfd: Arc<File>,
        kicked: impl Fn(&File) + 'static,
    ) -> Result<Self, Error> {
        let reader = Arc::clone(&eventfd);
        let handler = ctx.add_fd(eventfd, EventSet::IN, move |_| kicked(&reader))?;
        Ok(Self::EventFd { _handler: handler })
    }

    /// Uses a timer that checks the ring.
    pub(super) fn timer(timer: Timer) -> Self {
        timer.arm_in(INTERVAL);
        Self::Timer(timer)
    }

    /// Lets the timer check the ring once more.
    pub(super) fn check_again(&self) {
        if let Self::Timer(timer) = self {
            timer.arm_in(INTERVAL);
        }
    }
}
