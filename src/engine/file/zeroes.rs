//! Turns writes of zeroes into requests that make their ranges read as zeroes (QEMU's `detect-zeroes`).
//!
//! The guest may change its memory at any time. So memory is either found to be all zero, and then it is not read
//! again, or the kernel takes the data, whatever it is by then. Both are data that the driver had there while the
//! request was in flight.

use crate::engine::DetectZeroes;
use crate::io::{IoOp, Requests};

/// Changes the operation of each write in `batch` whose memory is all zero.
pub(super) fn detect(batch: &mut Requests, zeroes: DetectZeroes) {
    for request in batch {
        if let IoOp::Write { durable } = request.op
            && request.alone().is_zero()
        {
            let unmap = zeroes == DetectZeroes::Unmap;
            request.op = IoOp::ZeroedWrite { durable, unmap };
        }
    }
}
