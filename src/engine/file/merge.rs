//! Adjacent reads or writes of a batch, executed as one (QEMU's `request-merging`).
//!
//! A driver that reads or writes in sequence, in small pieces, fills a batch with neighbours. Each write through the page
//! cache takes the file's lock and a transaction of the file system, each request to a disk a trip there, each read of the
//! page cache a system call: one for all is several times faster. Only neighbours in the order of the batch are looked
//! at, which costs random requests next to nothing.
//!
//! The first of them leads: it is what the engine sees, and the others follow it. If anything goes wrong they are executed
//! one by one, so that each gets a result of its own.

use std::cell::RefCell;

use crate::io::{IoOp, IoRequest, Requests};
use crate::storage::{Nowait, RawFile};

/// Most bytes that become one request: more would save little, and lets the first wait for the last. From memory less, so
/// that two threads can share what is in a batch.
const MAX_BYTES: usize = 64 << 10;
const MAX_BYTES_IN_MEMORY: usize = 32 << 10;

/// Most ranges of memory, well below what one system call takes (IOV_MAX).
const MAX_RANGES: usize = 256;

/// Merges the requests of one queue. IOThread only.
#[derive(Debug)]
pub(super) struct Merger {
    max_bytes: usize,
    /// Recycled between batches.
    spare: RefCell<Requests>,
}

impl Merger {
    pub(super) fn new(file: &RawFile) -> Self {
        Self::up_to(match file.nowait() {
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

    /// Merges what follows each other in `batch`.
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

    /// Whether `next` goes on where `leader` ends, and both may become one.
    fn fit(&self, leader: &IoRequest, next: &IoRequest) -> bool {
        let (iov, more) = (leader.whole(), next.alone());
        leader.op == next.op
            && leader.offset.checked_add(iov.len() as u64) == Some(next.offset)
            && matches!(leader.op, IoOp::Read | IoOp::Write { .. })
            && iov.len() + more.len() <= self.max_bytes
            && iov.as_slice().len() + more.as_slice().len() <= MAX_RANGES
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::sequence;
    use super::*;

    #[test]
    fn neither_bytes_nor_ranges_exceed_what_one_request_may_have() {
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
    fn a_leader_can_be_used_again_alone() {
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
