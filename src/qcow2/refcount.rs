//! Refcounts: the number of users of each cluster of an image.

use super::cluster::ClusterSize;

/// The width of a refcount: 2^order bits, with an order of at most 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefcountWidth {
    order: u32,
}

impl RefcountWidth {
    /// Returns the width of 2^`order` bits, or `None` if refcounts cannot have it.
    pub fn from_order(order: u32) -> Option<Self> {
        (order <= 6).then_some(Self { order })
    }

    /// Returns the number of refcounts in a refcount block, which is as long as a cluster.
    pub fn per_block(self, cluster: ClusterSize) -> u64 {
        (cluster.bytes() * 8) >> self.order
    }

    /// Returns the largest refcount.
    pub fn max(self) -> u64 {
        u64::MAX >> (64 - (1 << self.order))
    }

    /// Returns the bytes of a block that have the refcounts `first..end`.
    pub fn bytes(self, first: u64, end: u64) -> std::ops::Range<u64> {
        (first << self.order) / 8..(end << self.order).div_ceil(8)
    }
}

/// A part of a refcount block, as it is in the image.
#[derive(Clone, Debug)]
pub struct Refcounts {
    width: RefcountWidth,
    /// The number in its block of the first refcount in `bytes`.
    first: u64,
    bytes: Vec<u8>,
}

impl Refcounts {
    /// Takes bytes of a block that begin with refcount number `first` (at most 7 before, for narrow refcounts).
    pub fn new(width: RefcountWidth, first: u64, bytes: Vec<u8>) -> Self {
        let first = match width.order {
            0..=2 => first & !((8 >> width.order) - 1),
            _ => first,
        };
        Self { width, first, bytes }
    }

    /// Returns the bytes for the image.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns a refcount by its number in the block.
    pub fn get(&self, number: u64) -> u64 {
        let (at, shift) = self.place(number);
        match self.width.order {
            order @ 0..=2 => u64::from(self.bytes[at] >> shift) & ((1 << (1 << order)) - 1),
            order => {
                let bytes = &self.bytes[at..at + (1 << (order - 3))];
                bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
            }
        }
    }

    /// Sets a refcount by its number in the block. `value` is at most [`RefcountWidth::max`].
    pub fn set(&mut self, number: u64, value: u64) {
        let (at, shift) = self.place(number);
        match self.width.order {
            order @ 0..=2 => {
                let mask = u8::MAX >> (8 - (1 << order));
                let value = value.to_le_bytes()[0] & mask;
                self.bytes[at] = self.bytes[at] & !(mask << shift) | value << shift;
            }
            order => {
                let len = 1 << (order - 3);
                self.bytes[at..at + len].copy_from_slice(&value.to_be_bytes()[8 - len..]);
            }
        }
    }

    fn place(&self, number: u64) -> (usize, u32) {
        let bit = (number - self.first) << self.width.order;
        let at = usize::try_from(bit / 8).expect("within a block");
        (at, u32::try_from(bit % 8).expect("below 8"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refcounts_of_all_widths_are_kept() {
        for order in 0..=6 {
            let width = RefcountWidth::from_order(order).unwrap();
            for first in [0_u64, 8, 13] {
                let bytes = width.bytes(first, first + 20);
                let len = usize::try_from(bytes.end - bytes.start).unwrap();
                let mut counts = Refcounts::new(width, first, vec![0; len]);
                let value = |number: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15) & width.max();
                (first..first + 20).for_each(|number| counts.set(number, value(number)));
                for number in first..first + 20 {
                    assert_eq!(counts.get(number), value(number), "{order} {number}");
                }
                counts.set(first + 3, 0);
                assert_eq!(counts.get(first + 3), 0);
                assert_eq!(counts.get(first + 4), value(first + 4));
            }
        }
    }

    #[test]
    fn narrow_refcounts_begin_at_the_lowest_bit() {
        let width = RefcountWidth::from_order(0).unwrap();
        let mut counts = Refcounts::new(width, 0, vec![0; 2]);
        counts.set(0, 1);
        counts.set(9, 1);
        assert_eq!(counts.bytes(), [1, 2]);
        let width = RefcountWidth::from_order(4).unwrap();
        let mut counts = Refcounts::new(width, 0, vec![0; 4]);
        counts.set(1, 0x0102);
        assert_eq!(counts.bytes(), [0, 0, 1, 2]);
    }
}
