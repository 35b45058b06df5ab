//! Finds requests whose kick does not come.
//!
//! Before a ring is left to its kicks, it is looked at once more. A driver that makes a request available just then either
//! is seen, or sees that it has to kick, because both sides put a full barrier between their store and their load. On
//! QEMU's TCG with a single vCPU, the barrier of an x86 guest (a locked instruction) orders nothing towards other
//! processes: we miss the driver's index, it misses our request for kicks, and both wait forever. So a ring that waits for
//! kicks is looked at again a little later. For a driver that follows the rules this costs a timer now and then.

use std::time::Duration;

use crate::aio::Timer;

/// Longer than a driver needs from its store of the index to the kick. Short enough for a guest that waits meanwhile.
const INTERVAL: Duration = Duration::from_millis(50);

/// The search for requests whose kick was lost. IOThread only.
#[derive(Debug)]
pub(super) struct MissedKick {
    timer: Timer,
    /// The index at which the last look found a request. If the next one finds the same, nobody will kick for it.
    last: Option<u16>,
    /// The driver was asked for kicks while the timer ran. The next look may come too early for that.
    renewed: bool,
}

impl MissedKick {
    /// Creates a search. `timer` must look at the ring, and call [`look`](Self::look).
    pub(super) fn new(timer: Timer) -> Self {
        Self {
            timer,
            last: None,
            renewed: false,
        }
    }

    /// Looks at the ring later. The driver was asked for kicks just now.
    #[inline]
    pub(super) fn look_later(&mut self) {
        self.renewed = self.timer.is_armed();
        if !self.renewed {
            self.timer.arm_in(INTERVAL);
        }
    }

    /// Takes the index of a request that waits for a kick, if there is one. Returns whether it has waited since the last
    /// look.
    pub(super) fn look(&mut self, waiting: Option<u16>) -> bool {
        let missed = waiting.is_some() && waiting == self.last;
        let renewed = std::mem::take(&mut self.renewed);
        self.last = waiting;
        if waiting.is_some() || renewed {
            self.look_later();
        }
        missed
    }
}
