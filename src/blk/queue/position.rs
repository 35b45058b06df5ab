//! The position of a ring, for statistics. IOThread only.

use super::BlkQueue;
use super::ring::Missing;
use crate::blk::position::RingPosition;

impl BlkQueue {
    /// Returns the number of the queue.
    pub(in crate::blk) fn index(&self) -> u16 {
        self.index
    }

    /// Returns where the ring stands. Returns `None` without a ring, and while memory of the ring is missing.
    pub(in crate::blk) fn position(&self) -> Option<RingPosition> {
        let state = self.state.borrow();
        if state.phase.missing() == Some(Missing::Ring) {
            return None;
        }
        state.phase.ring().map(|ring| RingPosition {
            polled: ring.polled,
            indices: ring.split.indices(),
        })
    }
}
