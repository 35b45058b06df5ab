//! The source of a queue's kicks: an eventfd, or a timer if the frontend gives none. IOThread only.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::aio::{AioContext, Error, EventSet, FdHandler, Timer};
use crate::eventfd;

/// How often a ring without a kick eventfd is checked.
const INTERVAL: Duration = Duration::from_millis(1);

/// The source of kicks. Dropping it ends them.
#[derive(Debug)]
pub(super) enum KickSource {
    EventFd(KickEventfd),
    Timer(Timer),
}

/// A watched eventfd. Each write to it is an edge, whatever its count, so it is not read after each kick, which saves a
/// system call. It is read after the first one, in case a predecessor has left a large count.
#[derive(Debug)]
pub(super) struct KickEventfd {
    _handler: FdHandler,
    eventfd: Arc<File>,
    /// A kick has come, so the count may not be 0.
    kicked: Rc<Cell<bool>>,
}

impl KickSource {
    /// Calls `kicked` after each write to the eventfd, and soon if its count is not 0. Several writes may be one kick. An
    /// error says that the eventfd cannot be read.
    pub(super) fn eventfd(
        ctx: &AioContext,
        eventfd: Arc<File>,
        kicked: impl Fn(io::Result<()>) + 'static,
    ) -> Result<Self, Error> {
        let has_kicked = Rc::<Cell<bool>>::default();
        let (mark, reader) = (Rc::clone(&has_kicked), Arc::clone(&eventfd));
        let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let handler = ctx.add_fd(Arc::clone(&eventfd), events, move |_| {
            let is_first = !mark.replace(true);
            kicked(if is_first {
                eventfd::drain(&*reader)
            } else {
                Ok(())
            });
        })?;
        Ok(Self::EventFd(KickEventfd {
            _handler: handler,
            eventfd,
            kicked: has_kicked,
        }))
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

impl KickEventfd {
    /// Ends the kicks, and clears the eventfd if it has kicked. A kick that nobody has seen may be cleared too, so signal
    /// the eventfd again if work is left in the ring.
    ///
    /// # Errors
    /// The eventfd cannot be read.
    pub(super) fn clear(self) -> io::Result<Arc<File>> {
        if self.kicked.get() {
            eventfd::drain(&*self.eventfd)?;
        }
        Ok(self.eventfd)
    }
}
