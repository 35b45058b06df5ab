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
use crate::storage::{Nowait, Storage};

/// Most bytes that become one request: more would save little, and lets the first wait for the last. From memory less, so
/// that two threads can share what is in a batch.
const MAX_BYTES: usize = 64 << 10;
const MAX_BYTES_IN_MEMORY: usize = 32 << 10;

/// Most ranges of memory, well below what one system call takes (IOV_MAX).
const MAX_RANGES: usize = 256;

/// Merges the requests of one queue. IOThread only.
#[derive(Debug)]
pub(in crate::engine) struct Merger {
    max_bytes: usize,
    /// Recycled between batches.
    spare: RefCell<Requests>,
}

impl Merger {
    pub(in crate::engine) fn new(storage: &Storage) -> Self {
        Self::up_to(match storage.nowait() {
            Nowait::Memory => MAX_BYTES_IN_MEMORY,
            _ => MAX_BYTES,
        })
    }

    pub(in crate::engine) fn up_to(max_bytes: usize) -> Self {
        Self {
            max_bytes,
            spare: RefCell::default(),
        }
    }

    /// Merges what follows each other in `batch`.
    pub(in crate::engine) fn merge(&self, batch: &mut Requests) {
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
pub(super) mod tests {
    use super::*;
    use crate::io::Completer;

    /// What came back.
    #[derive(Default)]
    pub(in super::super) struct Back(RefCell<Requests>);

    impl Back {
        pub(in super::super) fn take(&self) -> Requests {
            self.0.take()
        }
    }

    impl Completer for Back {
        fn complete(&self, request: Box<IoRequest>) {
            self.0.borrow_mut().push(request);
        }
    }

    /// Reads of 512 bytes, one after the other.
    pub(in super::super) fn sequence(count: u16, memory: &mut [u8; 512]) -> Requests {
        let one = |token| {
            let mut request = IoRequest::new();
            (request.token, request.offset) = (token, u64::from(token) * 512);
            // SAFETY: the memory outlives the requests, and nobody reads what is in it.
            unsafe { request.iov.push(memory.as_mut_ptr(), 512) };
            request
        };
        (0..count).map(one).collect()
    }

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
