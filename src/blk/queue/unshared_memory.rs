//! Reports a driver whose memory we do not see, because the frontend has not shared it.
//!
//! QEMU hands over the file of a memory backend even without `share=on`. But then the guest writes to a private copy.
//! All memory that we see stays zero for ever, the driver kicks and waits, and nobody says why. So a ring that is kicked
//! and stays empty is reported, unless another queue of the disk has had a request.
//!
//! A kick alone proves nothing: QEMU kicks each ring that starts, and drivers may kick when there is no request. So the
//! ring is not reported if anything has written to the memory that the frontend has shared: to the driver's parts of the
//! ring, or to the start of the memory, which has the firmware's data. IOThread only.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::ring::Ring;
use crate::aio::Timer;
use crate::blk::state::DeviceState;
use crate::virtqueue::SplitRing;

/// A kick comes after its request, so a request in shared memory never takes that long to appear.
const PATIENCE: Duration = Duration::from_secs(2);

/// The start of the guest's memory, which a running guest has written to. On a PC it has the firmware's tables.
const START: usize = 1 << 20;

/// The search for the first request in a ring.
#[derive(Debug)]
pub(super) struct UnsharedMemory {
    timer: Timer,
    /// The driver has put something into the ring.
    seen: bool,
}

impl UnsharedMemory {
    /// Creates a search. `timer` calls [`report`].
    pub(super) fn new(timer: Timer) -> Self {
        Self { timer, seen: false }
    }

    /// Another ring starts.
    pub(super) fn reset(&mut self) {
        self.timer.cancel();
        self.seen = false;
    }

    /// Returns whether something was in the ring.
    #[inline]
    pub(super) fn has_seen(&self) -> bool {
        self.seen
    }

    /// Looks into the ring after a kick. A ring that is still empty, and `active`, is looked at again later.
    pub(super) fn look(&mut self, ring: &SplitRing, active: bool, device: &DeviceState) {
        if !ring.is_untouched() {
            self.seen = true;
            // Relaxed: only a report depends on it.
            device.had_requests.store(true, Ordering::Relaxed);
        } else if active && !self.timer.is_armed() {
            self.timer.arm_in(PATIENCE);
        }
    }
}

/// Reports that a ring was kicked and is still empty, as is all memory.
pub(super) fn report(ring: &Ring, queue: u16, device: &DeviceState) {
    if ring.split.is_untouched()
        && !device.had_requests.load(Ordering::Relaxed)
        && ring.split.is_zero()
        && ring.memory.starts_with_zeroes(START)
        && let Some(suppressed) = device.log.pass("unshared", "")
    {
        tracing::warn!(
            disk = device.name,
            queue,
            suppressed,
            "the driver has kicked this queue, and there is no request in it: is the guest's memory shared? (QEMU: \
             share=on on its memory backend)"
        );
    }
}
