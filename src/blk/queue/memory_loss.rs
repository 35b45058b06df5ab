//! Memory that is lost while a ring runs: the frontend has cut its file short, or the memory has failed.
//!
//! Our own access to a lost page goes on with zeroes (see `guard`). The queue finds out here, once per visit and once
//! per publication. If it has lost its ring, or what belongs to the ring, it breaks. If it has lost other guest memory,
//! only requests that use that memory fail. System calls need none of this: they fail by themselves.

use super::latencies::Nanos;
use super::ring::{QueueError, Ring};
use super::visit::Collected;
use super::{BlkQueue, State};
use crate::blk::request::Rules;
use crate::blk::state::DeviceState;
use crate::blk::stats::QueueStats;
use crate::guard::losses;
use crate::io::{IoRequest, Requests};

impl BlkQueue {
    /// The answers may have gone into lost memory.
    #[cold]
    pub(super) fn check_after_publication(&self, state: &mut State) {
        if !state.phase.is_broken()
            && let Some(lost) = self.find_lost(state)
        {
            self.fail(state, &lost);
        }
    }

    /// Looks for memory that was lost since the last look. From here on, requests that use it fail. Returns an error if
    /// the ring cannot run without it.
    #[cold]
    pub(super) fn find_lost(&self, state: &mut State) -> Option<QueueError> {
        let ring = state.phase.ring_mut()?;
        ring.losses = Some(losses());
        if let Some(lost) = ring.lost_part() {
            return Some(QueueError::Lost(lost));
        }
        if ring.forget_lost()
            && let Some(suppressed) = self.device.log.pass("guest memory is gone", self.index)
        {
            tracing::error!(
                disk = self.device.name,
                queue = self.index,
                suppressed,
                "guest memory is gone: its file was cut short, or it has failed; requests that use it fail"
            );
        }
        None
    }

    /// A visit may have read zeroes in place of lost memory. Reads its chains again, without that memory.
    #[cold]
    pub(super) fn take_again(
        &self,
        state: &mut State,
        batch: &mut Requests,
        collected: Result<Collected, QueueError>,
    ) -> Result<Collected, QueueError> {
        // If nothing was ever lost, an error is what it says.
        let mut collected = collected.map_err(|error| match losses() {
            0 => error,
            _ => QueueError::Lost("memory of a descriptor chain"),
        });
        while state.may_have_lost() {
            if let Some(lost) = self.find_lost(state) {
                collected = Err(lost);
            }
            if let Err(error) = state.take_again(&self.device, batch) {
                collected = Err(error);
            }
        }
        // Some may have been answered at once.
        collected.map(|collected| Collected {
            answered: true,
            ..collected
        })
    }
}

impl State {
    /// True if memory was lost somewhere since this ring's was last checked.
    #[inline]
    pub(super) fn may_have_lost(&self) -> bool {
        self.phase
            .ring()
            .is_some_and(|ring| ring.losses != Some(losses()))
    }

    /// Reads the chains of a batch again. Requests that cannot be executed any more are answered.
    fn take_again(&mut self, device: &DeviceState, batch: &mut Requests) -> Result<(), QueueError> {
        let rules = device.rules(&self.view, self.write_through, self.inactive);
        let Some(ring) = self.phase.ring_mut() else {
            return Ok(());
        };
        let mut result = Ok(());
        for mut request in std::mem::take(batch) {
            let again = ring.begin_again(&mut request, self.clock.last(), &rules, &self.stats);
            if matches!(again, Ok(true)) {
                batch.push(request);
                continue;
            }
            request.iov.clear();
            self.free.push(request);
            result = result.and(again.map(drop));
        }
        result
    }
}

impl Ring {
    /// [`Ring::begin`] once more, for a chain that was taken and not handed to the engine.
    fn begin_again(
        &mut self,
        request: &mut IoRequest,
        now: Nanos,
        rules: &Rules<'_>,
        stats: &QueueStats,
    ) -> Result<bool, QueueError> {
        let head = request.token;
        let taken = self.owned.release(head).map_or(now, |slot| slot.taken);
        request.iov.clear();
        self.begin(head, taken, request, rules, stats)
    }

    /// Names a part that the ring cannot run without, and that an access has found lost.
    fn lost_part(&self) -> Option<&'static str> {
        if self.split.is_lost() {
            Some("memory of the ring")
        } else if self.split.inflight_is_lost() {
            Some("the in-flight region")
        } else if self.log.as_ref().is_some_and(|log| log.is_lost()) {
            Some("the dirty log")
        } else {
            None
        }
    }

    /// Forgets guest memory that is lost: requests that use it fail. Returns whether more is lost than before.
    fn forget_lost(&mut self) -> bool {
        let view = self.memory.without_lost();
        let more = view.is_some();
        if let Some(view) = view {
            self.memory = view;
        }
        more
    }
}
