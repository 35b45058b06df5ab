//! Arithmetic of ring indices, which count modulo 2^16 whatever the queue size (VIRTIO 1.3, 2.7.6 and 2.7.8).
//!
//! These are pure functions. The guest can choose the indices freely, so the tests cover all values.

use std::num::Wrapping;

/// Returns how many entries the driver has made available from `next` up to its index, or `None` if that is more than
/// the ring has.
#[inline]
pub(super) fn available(idx: Wrapping<u16>, next: Wrapping<u16>, size: u16) -> Option<u16> {
    let entries = (idx - next).0;
    (entries <= size).then_some(entries)
}

/// Returns the entry that an index stands for in a ring of `size` entries (a power of two).
#[inline]
pub(super) fn slot(index: Wrapping<u16>, size: u16) -> usize {
    usize::from(index.0 & (size - 1))
}

/// Returns whether the used index passed `event` when it went from `old` to `new`, so that the driver wants a
/// notification (2.7.10).
#[inline]
pub(super) fn need_event(event: Wrapping<u16>, new: Wrapping<u16>, old: Wrapping<u16>) -> bool {
    new - event - Wrapping(1) < new - old
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtqueue::MAX_QUEUE_SIZE;

    /// Optimised builds test all pairs of indices. Other builds combine every 251st value (a prime) of one index with
    /// all values of the other.
    const STRIDE: usize = if cfg!(debug_assertions) { 251 } else { 1 };

    fn indices() -> impl Iterator<Item = u16> {
        (0..=u16::MAX).step_by(STRIDE)
    }

    fn sizes() -> impl Iterator<Item = u16> {
        (0..=MAX_QUEUE_SIZE.ilog2()).map(|n| 1 << n)
    }

    /// Computes how far `to` is ahead of `from` as rings count, but without wrapping arithmetic.
    fn ahead(to: u16, from: u16) -> u32 {
        let (to, from) = (u32::from(to), u32::from(from));
        if to >= from {
            to - from
        } else {
            to + 0x1_0000 - from
        }
    }

    #[test]
    fn available_is_right_for_every_pair_and_size() {
        for next in indices() {
            for idx in 0..=u16::MAX {
                let expected = ahead(idx, next);
                // Testing the largest size that is too small and the smallest that is large enough covers all others.
                let least = u16::try_from(expected.next_power_of_two().min(2048)).unwrap();
                for size in [1, least / 2, least, MAX_QUEUE_SIZE] {
                    let size = size.clamp(1, MAX_QUEUE_SIZE);
                    let found = available(Wrapping(idx), Wrapping(next), size);
                    let expected = u16::try_from(expected).ok().filter(|&n| n <= size);
                    assert!(found == expected, "{idx} {next} {size}: {found:?}");
                }
            }
        }
    }

    #[test]
    fn available_is_right_at_its_bounds() {
        for (next, size) in (0..=u16::MAX).flat_map(|next| sizes().map(move |size| (next, size))) {
            for (entries, fits) in [
                (0, true),
                (1, true),
                (size, true),
                (size + 1, false),
                (u16::MAX, false),
            ] {
                let idx = Wrapping(next) + Wrapping(entries);
                let expected = fits.then_some(entries);
                assert!(
                    available(idx, Wrapping(next), size) == expected,
                    "{idx} {next} {size}"
                );
            }
        }
    }

    #[test]
    fn slot_is_the_index_modulo_the_size() {
        for size in sizes() {
            let mut expected = 0;
            for index in 0..=u16::MAX {
                assert!(slot(Wrapping(index), size) == expected, "{index} {size}");
                expected = if expected + 1 == usize::from(size) {
                    0
                } else {
                    expected + 1
                };
            }
            assert_eq!(expected, 0, "no entry is skipped where indices wrap around");
        }
    }

    #[test]
    fn event_is_needed_if_the_batch_contains_it() {
        // No batch is larger than a queue. `old` takes a different value for each batch size.
        let mut old = 0u16;
        for batch in 0..=MAX_QUEUE_SIZE {
            old = old.wrapping_add(40_503);
            let new = old.wrapping_add(batch);
            for event in 0..=u16::MAX {
                // Entries old..new were used; the driver asked to be told when entry `event` is.
                let expected = ahead(event, old) < u32::from(batch);
                let needed = need_event(Wrapping(event), Wrapping(new), Wrapping(old));
                assert!(needed == expected, "{event} {new} {old}");
            }
        }
    }

    #[test]
    fn event_is_needed_for_every_pair_of_positions() {
        for old in indices() {
            for event in 0..=u16::MAX {
                // Testing the smallest batch that contains the event, and the next smaller one, covers all others.
                let distance = ahead(event, old);
                let needed = |batch: u32| {
                    let new = Wrapping(old) + Wrapping(u16::try_from(batch).unwrap());
                    need_event(Wrapping(event), new, Wrapping(old))
                };
                assert!(!needed(distance), "{event} {old}");
                assert!(distance == 0xffff || needed(distance + 1), "{event} {old}");
                assert!(!needed(0) && (distance > 1023 || needed(1024)), "{event} {old}");
            }
        }
    }
}
