//! Memory that goes away while a ring runs: the frontend has cut its file short, or it has failed.
//!
//! Our own access that notices goes on with zeroes (see `guard`); here the queue finds out, once per visit and once per
//! publication. Without its ring, or what goes with it, a queue breaks. Without other pages of guest memory only the
//! requests that use them fail. System calls need none of this: they fail by themselves.

use super::running::Collected;
use super::{BlkQueue, QueueError, State};
use crate::guard::losses;
use crate::io::Requests;

impl BlkQueue {
    /// Shows completed requests to the driver. The answers may have gone into memory that nobody shares any more.
    pub(super) fn publish(&self) {
        let mut state = self.state.borrow_mut();
        state.publish();
        if !state.broken
            && state.may_have_lost()
            && let Some(lost) = self.find_lost(&mut state)
        {
            self.fail(&mut state, &lost);
        }
    }

    /// Looks for what is lost since the last time: from here on requests that use it fail. Returns what the ring cannot
    /// do without.
    #[cold]
    pub(super) fn find_lost(&self, state: &mut State) -> Option<QueueError> {
        state.losses = Some(losses());
        let running = state.running.as_mut()?;
        if let Some(lost) = running.lost() {
            return Some(QueueError::Lost(lost));
        }
        if running.forget_lost()
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

    /// A visit may have read zeroes in the place of lost memory: takes its requests again, as they are without it.
    #[cold]
    pub(super) fn take_again(
        &self,
        state: &mut State,
        batch: &mut Requests,
        collected: Result<Collected, QueueError>,
    ) -> Result<Collected, QueueError> {
        // Before anything was lost, an error is what it says.
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
        // Where some were answered at once.
        collected.map(|collected| Collected {
            answered: true,
            ..collected
        })
    }
}

impl State {
    /// True if memory was lost somewhere since the last look.
    #[inline]
    pub(super) fn may_have_lost(&self) -> bool {
        self.losses != Some(losses())
    }
}
