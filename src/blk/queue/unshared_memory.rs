//! Reports a driver whose memory we do not see, because the frontend has not shared it.
//!
//! QEMU hands over the file of a memory backend without `share=on`, too, but its guest then writes to a private copy.
//! The rings that we see stay all zeroes forever, the driver kicks and waits, and nobody says why. So a ring that is
//! kicked and stays untouched is reported, unless another queue of the disk has had a request. IOThread only.

use std::rc::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::BlkQueue;
use crate::aio::{AioContext, Timer};

/// A kick comes after its request, so a request in shared memory never takes that long to appear.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct UnsharedMemory {
    timer: Timer,
    /// The driver has put something into the ring.
    seen: bool,
}

impl UnsharedMemory {
    pub(super) fn new(ctx: &AioContext, queue: Weak<BlkQueue>) -> Self {
        let timer = ctx.timer(move |_| {
            if let Some(queue) = queue.upgrade() {
                queue.report_unshared();
            }
        });
        Self { timer, seen: false }
    }

    /// Another ring starts.
    pub(super) fn reset(&mut self) {
        self.timer.cancel();
        self.seen = false;
    }
}

impl BlkQueue {
    /// Checks the ring after a kick, until something was in it.
    #[inline]
    pub(super) fn check_shared(&self) {
        if !self.state.borrow().unshared.seen {
            self.look_for_requests();
        }
    }

    #[cold]
    fn look_for_requests(&self) {
        let mut state = self.state.borrow_mut();
        let Some(ring) = state.phase.ring() else { return };
        if !ring.split.is_untouched() {
            state.unshared.seen = true;
            // Relaxed: only a report depends on it.
            self.device.had_requests.store(true, Ordering::Relaxed);
        } else if state.active_ring().is_some() && !state.unshared.timer.is_armed() {
            state.unshared.timer.arm_in(PATIENCE);
        }
    }

    fn report_unshared(&self) {
        let mut state = self.state.borrow_mut();
        if state.active_ring().is_some_and(|ring| ring.split.is_untouched())
            && !self.device.had_requests.load(Ordering::Relaxed)
            && let Some(suppressed) = self.device.log.pass("unshared", "")
        {
            tracing::warn!(
                disk = self.device.name,
                queue = self.index,
                suppressed,
                "the driver has kicked this queue, and there is no request in it: is the guest's memory shared? (QEMU: \
                 share=on on its memory backend)"
            );
        }
    }
}
