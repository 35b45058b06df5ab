//! Turns writes of zeroes into requests that make their ranges read as zeroes (QEMU's `detect-zeroes`).
//!
//! The guest may change its memory at any time. So memory is either found to be all zero, and then it is not read
//! again, or the kernel takes the data, whatever it is by then. Both are data that the driver had there while the
//! request was in flight.

use crate::io::{IoOp, Requests};

/// The treatment of writes whose memory is all zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DetectZeroes {
    /// They are like other writes, and no memory is looked at.
    #[default]
    Off,
    /// Makes the range read as zeroes. Its space stays or becomes allocated, if the storage supports that.
    On,
    /// Makes the range read as zeroes, and gives its space back if the storage was opened with
    /// [`unmap`](crate::storage::OpenOptions::unmap).
    Unmap,
}

impl DetectZeroes {
    /// Changes the operation of each write in `batch` whose memory is all zero.
    pub(super) fn apply(self, batch: &mut Requests) {
        for request in batch {
            if let IoOp::Write { durable } = request.op
                && request.alone().is_zero()
            {
                let unmap = self == Self::Unmap;
                request.op = IoOp::ZeroedWrite { durable, unmap };
            }
        }
    }
}
