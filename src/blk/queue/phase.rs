//! The phases of a ring. IOThread only.

use std::sync::mpsc::Sender;

use super::ring::{Missing, Ring, Stop};
use crate::blk::stats::RingState;

/// The life of a ring.
#[derive(Debug)]
pub(super) enum Phase {
    /// There is no ring. The next one continues at `base`, if the frontend asks where.
    Stopped { base: u16 },
    /// The frontend has set up a ring.
    Started { ring: Box<Ring>, stage: Stage },
}

/// The stages of a ring that is set up. Chains are taken only while it is [`Running`](Self::Running); those that were
/// taken before are answered in every stage.
#[derive(Debug)]
pub(super) enum Stage {
    /// The first kick has not come yet.
    Waiting,
    /// Takes what the driver makes available, unless the frontend has disabled the ring.
    Running,
    /// The frontend has removed memory that the ring needs, and may give it back.
    Paused {
        missing: Missing,
        /// The first kick has come.
        kicked: bool,
    },
    /// The driver broke the rules, or memory of the ring is lost. Only another start helps.
    Broken,
    /// When no chain is left in flight, `done` gets the base.
    Stopping { stop: Stop, done: Sender<u16> },
}

/// A ring that has stopped.
#[derive(Debug)]
pub(super) struct Stopped {
    /// The available index to continue at.
    pub(super) base: u16,
    /// Something is available.
    pub(super) has_work: bool,
    /// Waits for the base.
    pub(super) done: Sender<u16>,
}

impl Stage {
    /// A ring runs from its first kick on.
    pub(super) fn new(kicked: bool) -> Self {
        match kicked {
            true => Self::Running,
            false => Self::Waiting,
        }
    }
}

impl Phase {
    /// Returns the ring, whatever it is doing.
    #[inline]
    pub(super) fn ring(&self) -> Option<&Ring> {
        match self {
            Self::Stopped { .. } => None,
            Self::Started { ring, .. } => Some(ring),
        }
    }

    #[inline]
    pub(super) fn ring_mut(&mut self) -> Option<&mut Ring> {
        match self {
            Self::Stopped { .. } => None,
            Self::Started { ring, .. } => Some(ring),
        }
    }

    /// Returns the ring if it runs.
    #[inline]
    pub(super) fn running_ring(&mut self) -> Option<&mut Ring> {
        match self {
            Self::Started {
                ring,
                stage: Stage::Running,
            } => Some(ring),
            _ => None,
        }
    }

    pub(super) fn stage(&self) -> Option<&Stage> {
        match self {
            Self::Stopped { .. } => None,
            Self::Started { stage, .. } => Some(stage),
        }
    }

    fn stage_mut(&mut self) -> Option<&mut Stage> {
        match self {
            Self::Stopped { .. } => None,
            Self::Started { stage, .. } => Some(stage),
        }
    }

    #[inline]
    pub(super) fn is_running(&self) -> bool {
        matches!(
            self,
            Self::Started {
                stage: Stage::Running,
                ..
            }
        )
    }

    #[inline]
    pub(super) fn is_stopping(&self) -> bool {
        matches!(
            self,
            Self::Started {
                stage: Stage::Stopping { .. },
                ..
            }
        )
    }

    pub(super) fn is_broken(&self) -> bool {
        matches!(self.stage(), Some(Stage::Broken))
    }

    /// Returns the memory that a paused ring waits for.
    pub(super) fn missing(&self) -> Option<Missing> {
        match self.stage() {
            Some(Stage::Paused { missing, .. }) => Some(*missing),
            _ => None,
        }
    }

    pub(super) fn reported(&self) -> RingState {
        match self.stage() {
            None => RingState::Stopped,
            Some(Stage::Broken) => RingState::Broken,
            Some(Stage::Paused { .. }) => RingState::Paused,
            Some(Stage::Waiting | Stage::Running | Stage::Stopping { .. }) => RingState::Running,
        }
    }

    /// The driver has kicked.
    pub(super) fn kick(&mut self) {
        match self.stage_mut() {
            Some(stage @ Stage::Waiting) => *stage = Stage::Running,
            Some(Stage::Paused { kicked, .. }) => *kicked = true,
            _ => {}
        }
    }

    /// Memory that the ring needs is away. Returns whether the ring pauses because of that.
    pub(super) fn pause(&mut self, missing: Missing) -> bool {
        let Some(stage) = self.stage_mut() else {
            return false;
        };
        let (pauses, kicked) = match stage {
            Stage::Running => (true, true),
            Stage::Waiting => (true, false),
            Stage::Paused { kicked, .. } => (false, *kicked),
            Stage::Broken | Stage::Stopping { .. } => return false,
        };
        *stage = Stage::Paused { missing, kicked };
        pauses
    }

    /// The memory is back. Returns whether the ring was paused.
    pub(super) fn resume(&mut self) -> bool {
        match self.stage_mut() {
            Some(stage @ &mut Stage::Paused { kicked, .. }) => {
                *stage = Stage::new(kicked);
                true
            }
            _ => false,
        }
    }

    /// The ring cannot be trusted any more. A stop goes on: the chains in flight are answered.
    pub(super) fn fail(&mut self) {
        if let Some(stage @ (Stage::Waiting | Stage::Running | Stage::Paused { .. })) = self.stage_mut() {
            *stage = Stage::Broken;
        }
    }

    /// No more chains are taken. Without a ring, `done` gets the base at once.
    pub(super) fn stop(&mut self, stop: Stop, done: Sender<u16>) {
        match self {
            Self::Started { stage, .. } => *stage = Stage::Stopping { stop, done },
            Self::Stopped { base } => {
                // The session may be gone.
                let _ = done.send(*base);
            }
        }
    }

    /// Returns whether the ring stops, and no chain is in flight.
    pub(super) fn has_drained(&self) -> bool {
        self.is_stopping() && self.ring().is_some_and(|ring| ring.owned.is_empty())
    }

    /// Ends a stop.
    pub(super) fn finish_stop(&mut self) -> Option<Stopped> {
        let Self::Started {
            ring,
            stage: Stage::Stopping { stop, done },
        } = self
        else {
            return None;
        };
        let stopped = Stopped {
            base: ring.hand_over(*stop),
            // After the driver was asked for kicks: it kicks for all that comes later.
            has_work: ring.split.has_work().unwrap_or(false),
            done: done.clone(),
        };
        *self = Self::Stopped { base: stopped.base };
        Some(stopped)
    }
}
