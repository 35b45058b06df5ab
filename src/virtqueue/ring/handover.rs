//! Handing over unanswered chains: when a ring stops, its next backend must learn of the chains that the device took
//! but did not answer.
//!
//! GET_VRING_BASE returns a single index. That is enough if the unanswered chains are the last ones in the available
//! ring: the index goes back to the first of them, and any device takes them again. If later chains were answered
//! already, going back would execute those twice. Then the index stays, and the heads are noted in the used ring, in
//! the elements that will be filled next.
//!
//! This is within the specification: these elements belong to the device, and the driver does not read an element
//! before the used index has passed it. Guest memory also moves with the guest, whereas QEMU does not migrate the
//! in-flight region. Only this program understands the notes.

use std::num::Wrapping;
use std::sync::atomic::Ordering;

use super::SplitRing;
use super::index::slot;

/// Marks a note, in the upper half of the element's length; the lower half is the used index. No real used element has
/// such a length.
const NOTE: u32 = 0x686c_0000;

impl SplitRing {
    /// Leaves `taken`, all chains that were popped but not answered, to the next backend of this ring. Chains that a
    /// predecessor left and that were not popped are left to the next backend as well.
    ///
    /// Call this when everything else is published. Afterwards the ring may only be used to ask for kicks.
    ///
    /// If `may_go_back` is set and these are the last chains in the available ring, `next_avail` goes back to the first
    /// of them.
    pub fn leave(&mut self, taken: &[u16], may_go_back: bool) {
        let not_popped = self.resubmit.drain(..).rev();
        let heads: Vec<u16> = taken.iter().copied().chain(not_popped).collect();
        if may_go_back && self.are_last(&heads) {
            self.next_avail = self.next_used;
            self.avail_idx = self.next_avail;
        } else if !heads.is_empty() {
            self.note(&heads);
        }
    }

    /// Returns whether these chains are the last ones in the available ring before the next one to take.
    fn are_last(&self, heads: &[u16]) -> bool {
        let mut left = vec![false; usize::from(self.size)];
        heads.iter().for_each(|&head| left[usize::from(head)] = true);
        usize::from((self.next_avail - self.next_used).0) == heads.len()
            && (0..).map(Wrapping).take(heads.len()).all(|i| {
                let entry = 4 + 2 * slot(self.next_used + i, self.size);
                // Relaxed: the entry was read before, and the driver may not reuse its slot yet.
                let head = u16::from_le(self.avail_u16(entry).load(Ordering::Relaxed));
                left.get_mut(usize::from(head)).is_some_and(std::mem::take)
            })
    }

    /// Writes `heads` into used elements that the driver does not read yet.
    fn note(&mut self, heads: &[u16]) {
        #[allow(clippy::cast_possible_truncation, reason = "at most the ring's size")]
        let count = heads.len() as u32;
        for (i, &head) in (0..).map(Wrapping).zip(heads) {
            let index = self.next_used + i;
            let element = 4 + 8 * slot(index, self.size);
            // Relaxed: the reader starts after our answer to GET_VRING_BASE.
            self.used_u32(element)
                .store((count << 16 | u32::from(head)).to_le(), Ordering::Relaxed);
            self.used_u32(element + 4)
                .store((NOTE | u32::from(index.0)).to_le(), Ordering::Relaxed);
        }
        self.log_used();
    }

    /// Takes over the chains that a predecessor left in the ring; they are popped first.
    ///
    /// Call this on a ring that has not been used yet and does not resume from an in-flight region.
    ///
    /// Returns how many chains a predecessor took but neither answered nor left a note of.
    pub fn adopt(&mut self) -> u16 {
        let unanswered = (self.next_avail - self.next_used).0;
        let heads = self.noted(unanswered).unwrap_or_default();
        for &head in &heads {
            if let Some(inflight) = &mut self.inflight {
                inflight.take(head);
            }
        }
        #[allow(clippy::cast_possible_truncation, reason = "at most the ring's size")]
        let adopted = heads.len() as u16;
        self.resubmit = heads;
        self.resubmit.reverse();
        unanswered - adopted
    }

    /// Returns the heads in a predecessor's notes, if there are valid notes of at most `most` heads.
    fn noted(&self, most: u16) -> Option<Vec<u16>> {
        if most == 0 || most > self.size {
            return None;
        }
        let read = |i: u16| {
            let index = self.next_used + Wrapping(i);
            let element = 4 + 8 * slot(index, self.size);
            let [id, len] =
                [0, 4].map(|at| u32::from_le(self.used_u32(element + at).load(Ordering::Relaxed)));
            let (count, head) = ((id >> 16) as u16, (id & 0xffff) as u16);
            (len == NOTE | u32::from(index.0) && head < self.size).then_some((count, head))
        };
        let (count, _) = read(0).filter(|&(count, _)| (1..=most).contains(&count))?;
        let mut seen = vec![false; usize::from(self.size)];
        let head = |i| {
            let (same, head) = read(i)?;
            let again = std::mem::replace(&mut seen[usize::from(head)], true);
            (same == count && !again).then_some(head)
        };
        (0..count).map(head).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::virtqueue::inflight::model::Driver;

    fn pop_all(ring: &mut SplitRing) -> Vec<u16> {
        std::iter::from_fn(|| ring.pop().unwrap()).collect()
    }

    proptest! {
        #[test]
        fn successor_gets_exactly_the_unanswered_chains(
            start: u16,
            event_idx: bool,
            tracked: bool,
            rounds in prop::collection::vec(
                (0usize..9, 0usize..9, 0usize..9, any::<usize>(), any::<bool>()),
                1..12,
            ),
        ) {
            let mut driver = Driver::new(8, start, event_idx);
            let (mut base, mut left) = (start, Vec::new());
            for (submit, put_back, answer, pick, may_go_back) in rounds {
                (0..submit).for_each(|i| driver.submit(pick.wrapping_add(i)));
                let mut ring = driver.ring(base, tracked);
                prop_assert_eq!(ring.adopt(), 0);
                let left_behind = ring.left_in_flight();
                let mut taken = pop_all(&mut ring);
                let mut expected = driver.outstanding().to_vec();
                expected.sort_unstable();
                let mut sorted = taken.clone();
                sorted.sort_unstable();
                prop_assert_eq!(sorted, expected, "left before: {:?}", left);
                // The last chains cannot be executed now.
                for n in (0..taken.len()).rev().take(put_back) {
                    ring.put_back(taken[n], n < left_behind);
                    taken.truncate(n);
                }
                for _ in 0..answer.min(taken.len()) {
                    let head = taken.swap_remove(pick % taken.len());
                    ring.push_used(head, 1);
                }
                ring.publish();
                driver.reap();
                ring.leave(&taken, may_go_back);
                ring.leave_kicks_enabled();
                (base, left) = (ring.next_avail(), taken);
            }
        }
    }

    #[test]
    fn chains_taken_last_can_be_taken_again() {
        let mut driver = Driver::new(8, 0xfffe, false);
        (0..5).for_each(|_| driver.submit(0));
        let mut ring = driver.ring(0xfffe, false);
        let taken = pop_all(&mut ring);
        ring.push_used(taken[1], 1);
        ring.push_used(taken[0], 1);
        ring.publish();
        ring.leave(&[taken[4], taken[2], taken[3]], true);
        assert_eq!(ring.next_avail(), 0);
        // This device does not look for notes.
        assert_eq!(pop_all(&mut driver.ring(0, false)), taken[2..]);
    }

    #[test]
    fn chains_without_a_note_are_counted() {
        let mut driver = Driver::new(8, 0, false);
        (0..4).for_each(|_| driver.submit(0));
        for (base, lost) in [(0, 0), (3, 3), (100, 100)] {
            assert_eq!(driver.ring(base, false).adopt(), lost);
        }
        let mut ring = driver.ring(2, false);
        assert_eq!(ring.adopt(), 2);
        // Handing over again does not find the lost chains: only the chains that this ring leaves are noted.
        let taken = pop_all(&mut ring);
        ring.leave(&taken, true);
        assert_eq!(ring.next_avail(), 4);
        let mut ring = driver.ring(4, false);
        assert_eq!((ring.adopt(), pop_all(&mut ring)), (2, taken));
    }

    #[test]
    fn notes_that_do_not_match_the_ring_are_ignored() {
        let mut driver = Driver::new(8, 0, false);
        (0..3).for_each(|_| driver.submit(0));
        let mut ring = driver.ring(0, false);
        let taken = pop_all(&mut ring);
        ring.push_used(taken[2], 1);
        ring.publish();
        ring.leave(&taken[..2], true);
        assert_eq!(driver.ring(3, false).adopt(), 0);
        // Three mismatches: fewer unanswered chains than notes, an element used since, a head that is noted twice.
        assert_eq!(driver.ring(2, false).adopt(), 1);
        let element = |index: usize, word: usize| 4 + 8 * index + 4 * word;
        ring.used_u32(element(2, 1)).store(1, Ordering::Relaxed);
        assert_eq!(driver.ring(3, false).adopt(), 2);
        ring.leave(&[taken[0], taken[0]], false);
        assert_eq!(driver.ring(3, false).adopt(), 2);
    }
}
