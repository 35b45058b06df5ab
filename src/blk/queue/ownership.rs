//! The chains that a queue owns: taken from the ring and not answered yet. Each is answered exactly once, or left to
//! the next backend of the ring. IOThread only.

use std::rc::Rc;

use super::latencies::Nanos;
use crate::aio::InProgress;
use crate::memory::MemoryView;

/// A chain that the queue owns.
#[derive(Debug)]
pub(super) struct Slot {
    /// The status byte, for our own accesses.
    pub(super) status: *mut u8,
    /// Bytes that a successful request writes, without the status byte.
    pub(super) written: u32,
    /// Payload, for the statistics.
    pub(super) bytes: u64,
    /// The beginning of the visit that took the chain, by the ring's clock.
    pub(super) taken: Nanos,
    /// Keeps the guest memory of the request mapped.
    pub(super) memory: Rc<MemoryView>,
}

/// All chains that the queue owns, by descriptor head.
#[derive(Debug)]
pub(super) struct Owned {
    slots: Box<[Option<Slot>]>,
    count: u16,
    /// Tells the event loop whether there are any.
    in_progress: InProgress,
    /// Chains that stay unanswered when the ring stops.
    left: Vec<u16>,
}

impl Owned {
    pub(super) fn new(ring_size: u16, in_progress: InProgress) -> Self {
        Self {
            slots: std::iter::repeat_with(|| None).take(ring_size.into()).collect(),
            count: 0,
            in_progress,
            left: Vec::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn len(&self) -> usize {
        self.count.into()
    }

    #[inline]
    pub(super) fn has(&self, head: u16) -> bool {
        self.slots.get(usize::from(head)).is_some_and(Option::is_some)
    }

    /// Takes a chain that the queue does not own yet.
    #[inline]
    pub(super) fn take(&mut self, head: u16, slot: Slot) {
        self.slots[usize::from(head)] = Some(slot);
        if self.count == 0 {
            self.in_progress.begin();
        }
        self.count += 1;
    }

    /// Gives up a chain that is to be answered now.
    #[inline]
    pub(super) fn release(&mut self, head: u16) -> Option<Slot> {
        let slot = self.slots.get_mut(usize::from(head))?.take()?;
        self.count -= 1;
        if self.count == 0 {
            self.in_progress.end();
        }
        Some(slot)
    }

    /// Gives up a chain without an answer, for the next backend of the ring.
    pub(super) fn leave(&mut self, head: u16) {
        if self.release(head).is_some() {
            self.left.push(head);
        }
    }

    /// Returns the chains that stay unanswered, in the order in which they were given up.
    pub(super) fn left(&self) -> &[u16] {
        &self.left
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if self.count > 0 {
            self.in_progress.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_is_in_progress_while_it_owns_chains() {
        let slot = || Slot {
            status: std::ptr::null_mut(),
            written: 0,
            bytes: 0,
            taken: 0,
            memory: MemoryView::new(std::sync::Arc::default()),
        };
        let in_progress = InProgress::default();
        let mut rings = [(); 2].map(|()| Owned::new(4, in_progress.clone()));
        for ring in &mut rings {
            ring.take(0, slot());
            ring.take(3, slot());
        }
        let [mut first, second] = rings;
        drop(second);
        assert!(in_progress.is_any() && first.release(3).is_some());
        assert!(in_progress.is_any());
        first.leave(0);
        assert!(!in_progress.is_any() && first.is_empty());
        assert!(first.release(0).is_none() && !in_progress.is_any());
    }
}
