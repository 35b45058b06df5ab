//! Merging of adjacent reads or writes of a batch (QEMU's `request-merging`).
//!
//! A driver that reads or writes sequentially in small pieces fills a batch with adjacent requests. Each of them would
//! cost a system call, and perhaps the file's lock and a transaction of the file system, or a round trip to the disk.
//! One merged request is several times faster. Only requests that are adjacent in the batch are compared, so random
//! requests cost next to nothing.
//!
//! The first request becomes the leader, which the engine sees. The others become its followers. If the merged request
//! fails, all of them are executed one by one, so that each gets its own result.

use std::cell::RefCell;

use crate::io::{IoOp, IoRequest, Requests};
use crate::storage::Nowait;

/// Maximum number of bytes in a merged request. More would save little, and the first request would wait for the last.
/// For data in memory it is less, so that two threads can share a batch.
const MAX_BYTES: usize = 64 << 10;
const MAX_BYTES_IN_MEMORY: usize = 32 << 10;

/// Maximum number of memory ranges in a merged request, well below the limit of a system call (IOV_MAX).
const MAX_RANGES: usize = 256;

/// Merges the requests of one queue. IOThread only.
#[derive(Debug)]
pub(super) struct Merger {
    max_bytes: usize,
    /// An empty list, kept for its capacity.
    spare: RefCell<Requests>,
}

impl Merger {
    pub(super) fn new(nowait: Nowait) -> Self {
        Self::up_to(match nowait {
            Nowait::Memory => MAX_BYTES_IN_MEMORY,
            _ => MAX_BYTES,
        })
    }

    pub(super) fn up_to(max_bytes: usize) -> Self {
        Self {
            max_bytes,
            spare: RefCell::default(),
        }
    }

    /// Merges adjacent requests in `batch`.
    pub(super) fn merge(&self, batch: &mut Requests) {
        if batch.is_sorted_by(|one, next| !self.fit(one, next)) {
            return;
        }
        let mut merged = self.spare.take();
        for request in batch.drain(..) {
            match merged.last_mut() {
                Some(leader) if self.fit(leader, &request) => leader.absorb(request),
                _ => merged.push(request),
            }
        }
        self.spare.replace(std::mem::replace(batch, merged));
    }

    /// Returns whether `next` starts where `leader` ends, and can be merged into it.
    fn fit(&self, leader: &IoRequest, next: &IoRequest) -> bool {
        let (iov, more) = (leader.whole(), next.alone());
        // The usual difference first.
        leader.offset.checked_add(iov.len() as u64) == Some(next.offset)
            && leader.op == next.op
            && matches!(
                leader.op,
                IoOp::Read | IoOp::Write { .. } | IoOp::ZeroedWrite { .. }
            )
            && iov.len() + more.len() <= self.max_bytes
            && iov.as_slice().len() + more.as_slice().len() <= MAX_RANGES
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::sequence;
    use super::*;

    #[test]
    fn merged_requests_respect_both_limits() {
        let mut memory = [0; 512];
        for (max_bytes, leaders) in [
            (512, 1024),
            (1023, 1024),
            (1024, 512),
            (64 << 10, 8),
            (1 << 20, 4),
        ] {
            let mut batch = sequence(1024, &mut memory);
            Merger::up_to(max_bytes).merge(&mut batch);
            assert_eq!(batch.len(), leaders, "{max_bytes}");
            for leader in &batch {
                assert!(leader.whole().len() <= max_bytes && leader.whole().as_slice().len() <= MAX_RANGES);
            }
        }
    }

    #[test]
    fn a_former_leader_can_be_used_alone() {
        let mut memory = [0; 512];
        let mut batch = sequence(3, &mut memory);
        Merger::up_to(4096).merge(&mut batch);
        let mut requests = Requests::new();
        batch.remove(0).disband(|request| requests.push(request));
        assert_eq!(requests.len(), 3);
        assert!(
            requests
                .iter()
                .all(|request| !request.is_merged() && request.whole().len() == 512)
        );
    }
}
