//! The phases of a queue's ring, from its start to its stop. IOThread only.

use std::sync::mpsc::Sender;

use super::ring::{Missing, QueueError, Ring, Stop};
use super::{BlkQueue, State};
use crate::blk::notice::Notice;
use crate::blk::stats::RingState;

/// The life of a ring. Chains are taken only while it is [`Running`](Self::Running); those that were taken before are
/// answered in every phase.
#[derive(Debug)]
pub(super) enum Phase {
    /// There is no ring. The next one continues at `base`, if the frontend asks where.
    Stopped { base: u16 },
    /// The first kick has not come yet.
    Waiting(Box<Ring>),
    /// Takes what the driver makes available, unless the frontend has disabled the ring.
    Running(Box<Ring>),
    /// The frontend has removed memory that the ring needs, and may give it back.
    Paused {
        ring: Box<Ring>,
        missing: Missing,
        /// The first kick has come.
        kicked: bool,
    },
    /// The driver broke the rules, or memory of the ring is lost. Only another start helps.
    Broken(Box<Ring>),
    /// When no chain is left in flight, `done` gets the base.
    Stopping {
        ring: Box<Ring>,
        stop: Stop,
        done: Sender<u16>,
    },
}

impl Phase {
    /// Returns the ring, whatever it is doing.
    #[inline]
    pub(super) fn ring(&self) -> Option<&Ring> {
        match self {
            Self::Stopped { .. } => None,
            Self::Waiting(ring)
            | Self::Running(ring)
            | Self::Paused { ring, .. }
            | Self::Broken(ring)
            | Self::Stopping { ring, .. } => Some(ring),
        }
    }

    #[inline]
    pub(super) fn ring_mut(&mut self) -> Option<&mut Ring> {
        match self {
            Self::Stopped { .. } => None,
            Self::Waiting(ring)
            | Self::Running(ring)
            | Self::Paused { ring, .. }
            | Self::Broken(ring)
            | Self::Stopping { ring, .. } => Some(ring),
        }
    }

    fn into_ring(self) -> Option<Box<Ring>> {
        match self {
            Self::Stopped { .. } => None,
            Self::Waiting(ring)
            | Self::Running(ring)
            | Self::Paused { ring, .. }
            | Self::Broken(ring)
            | Self::Stopping { ring, .. } => Some(ring),
        }
    }

    pub(super) fn is_stopping(&self) -> bool {
        matches!(self, Self::Stopping { .. })
    }

    pub(super) fn is_broken(&self) -> bool {
        matches!(self, Self::Broken(_))
    }

    fn reported(&self) -> RingState {
        match self {
            Self::Stopped { .. } => RingState::Stopped,
            Self::Broken(_) => RingState::Broken,
            Self::Paused { .. } => RingState::Paused,
            Self::Waiting(_) | Self::Running(_) | Self::Stopping { .. } => RingState::Running,
        }
    }
}

impl BlkQueue {
    /// Stops a ring that cannot be trusted any more. Everything else goes on.
    #[cold]
    pub(super) fn fail(&self, state: &mut State, error: &QueueError) {
        // Zeroes in place of lost memory look like all kinds of mistakes.
        let lost = match state.may_have_lost() {
            true => self.find_lost(state),
            false => None,
        };
        let error = lost.as_ref().unwrap_or(error);
        if let Some(suppressed) = self.device.log.pass("broken", self.index) {
            tracing::error!(
                disk = self.device.name,
                queue = self.index,
                %error,
                suppressed,
                "virtqueue is broken: stopped until the frontend sets it up again"
            );
        }
        let (queue, notices) = (self.index, self.device.notices());
        notices.tell(|| Notice::RingBroken {
            queue,
            reason: error.to_string(),
        });
        state.stats.broken.add(1);
        state.break_ring();
        state.notifier.report_broken();
    }

    /// Takes nothing from the ring until the frontend gives back the memory that is missing.
    #[cold]
    pub(super) fn pause(&self, state: &mut State, missing: Missing) {
        if state.pause_ring(missing)
            && let Some(suppressed) = self.device.log.pass("paused", self.index)
        {
            tracing::info!(
                disk = self.device.name,
                queue = self.index,
                %missing,
                suppressed,
                "ring paused until the frontend gives back memory that it has removed"
            );
        }
    }
}

impl State {
    /// Returns the ring if chains may be taken from it.
    #[inline]
    pub(super) fn active_ring(&mut self) -> Option<&mut Ring> {
        match &mut self.phase {
            Phase::Running(ring) if self.enabled && !self.quiesced => Some(ring),
            _ => None,
        }
    }

    /// The only way from one phase to another.
    fn change_phase(&mut self, next: impl FnOnce(Phase) -> Phase) {
        let phase = std::mem::replace(&mut self.phase, Phase::Stopped { base: 0 });
        self.phase = next(phase);
        self.stats.state.set(self.phase.reported());
        self.count_in_flight();
    }

    /// Shows how many chains the queue owns.
    #[inline]
    pub(super) fn count_in_flight(&self) {
        let owned = self.phase.ring().map_or(0, |ring| ring.owned.len());
        self.stats.in_flight.set(owned as u64);
    }

    /// A ring is set up. `kicked`: it need not wait for the first kick.
    pub(super) fn start_ring(&mut self, ring: Box<Ring>, kicked: bool) {
        self.change_phase(|_| match kicked {
            true => Phase::Running(ring),
            false => Phase::Waiting(ring),
        });
    }

    /// A kick starts a ring that waits for the first one.
    #[inline]
    pub(super) fn kick_ring(&mut self) {
        if !matches!(self.phase, Phase::Running(_)) {
            self.first_kick();
        }
    }

    #[cold]
    fn first_kick(&mut self) {
        self.change_phase(|phase| match phase {
            Phase::Waiting(ring) => Phase::Running(ring),
            Phase::Paused { ring, missing, .. } => Phase::Paused {
                ring,
                missing,
                kicked: true,
            },
            other => other,
        });
    }

    /// Memory that the ring needs is away. Returns whether the ring pauses because of that.
    pub(super) fn pause_ring(&mut self, missing: Missing) -> bool {
        let mut pauses = false;
        self.change_phase(|phase| {
            let (ring, kicked) = match phase {
                Phase::Running(ring) => (ring, true),
                Phase::Waiting(ring) => (ring, false),
                Phase::Paused { ring, kicked, .. } => {
                    return Phase::Paused {
                        ring,
                        missing,
                        kicked,
                    };
                }
                other => return other,
            };
            pauses = true;
            Phase::Paused {
                ring,
                missing,
                kicked,
            }
        });
        pauses
    }

    /// The memory is back. Returns whether the ring was paused.
    pub(super) fn resume_ring(&mut self) -> bool {
        let mut paused = false;
        self.change_phase(|phase| match phase {
            Phase::Paused { ring, kicked, .. } => {
                paused = true;
                match kicked {
                    true => Phase::Running(ring),
                    false => Phase::Waiting(ring),
                }
            }
            other => other,
        });
        paused
    }

    /// The ring cannot be trusted any more. A stop goes on: the chains in flight are answered.
    pub(super) fn break_ring(&mut self) {
        self.change_phase(|phase| match phase {
            Phase::Waiting(ring) | Phase::Running(ring) | Phase::Paused { ring, .. } => Phase::Broken(ring),
            other => other,
        });
    }

    /// No more chains are taken.
    pub(super) fn begin_stop(&mut self, stop: Stop, done: Sender<u16>) {
        if let Phase::Stopped { base } = self.phase {
            // The session may be gone.
            let _ = done.send(base);
            return;
        }
        self.change_phase(|phase| match phase.into_ring() {
            Some(ring) => Phase::Stopping { ring, stop, done },
            None => Phase::Stopped { base: 0 },
        });
    }

    /// Ends a stop once nothing is in flight.
    ///
    /// A worker that was asked to help with a batch may still be on its way (`engine::file::share`). It finds nothing,
    /// because all requests that it could have taken are back.
    pub(super) fn finish_stop(&mut self) {
        match &self.phase {
            Phase::Stopping { ring, .. } if ring.owned.is_empty() => {}
            _ => return,
        }
        self.publish();
        let mut stopped = None;
        self.change_phase(|phase| {
            let Phase::Stopping { mut ring, stop, done } = phase else {
                return phase;
            };
            let base = ring.hand_over(stop);
            stopped = Some((done, base));
            Phase::Stopped { base }
        });
        self.notifier.ring_stopped();
        if let Some((done, base)) = stopped {
            // The session may be gone.
            let _ = done.send(base);
        }
    }
}
