//! The parts of guest memory that the frontend has taken away and not given back.
//!
//! A request that uses such memory waits for it. A request that uses an address that was never mapped fails.

use std::ops::Range;

use super::quota::MAX_REGIONS;

/// Guest addresses that were mapped earlier. The ranges do not overlap.
#[derive(Clone, Debug, Default)]
pub(super) struct Removed {
    /// The most recently removed range is last.
    ranges: Vec<Range<u64>>,
}

impl Removed {
    /// Adds a range that was mapped until now. There is room for as many ranges as a table has regions. The oldest
    /// range is forgotten only if the frontend removes more ranges than that without giving them back.
    pub(super) fn add(&mut self, range: Range<u64>) {
        self.ranges.push(range);
        self.forget_oldest();
    }

    /// Removes the range `mapped`, which is mapped now, from all ranges.
    pub(super) fn subtract(&mut self, mapped: &Range<u64>) {
        let left = |range: &Range<u64>| {
            let before = range.start..range.end.min(mapped.start);
            let after = range.start.max(mapped.end)..range.end;
            [before, after].into_iter().filter(|part| !part.is_empty())
        };
        self.ranges = self.ranges.iter().flat_map(left).collect();
        self.forget_oldest();
    }

    /// Limits the number of ranges.
    fn forget_oldest(&mut self) {
        let excess = self.ranges.len().saturating_sub(MAX_REGIONS);
        self.ranges.drain(..excess);
    }

    pub(super) fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    pub(super) fn contains(&self, guest: u64) -> bool {
        self.ranges.iter().any(|range| range.contains(&guest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removed(ranges: impl IntoIterator<Item = Range<u64>>) -> Removed {
        let mut removed = Removed::default();
        ranges.into_iter().for_each(|range| removed.add(range));
        removed
    }

    #[test]
    fn mapped_parts_are_taken_out() {
        for (mapped, expected) in [
            (0..10, &[(10, 20), (30, 40)][..]),
            (10..20, &[(30, 40)]),
            (12..14, &[(10, 12), (14, 20), (30, 40)]),
            (5..12, &[(12, 20), (30, 40)]),
            (15..35, &[(10, 15), (35, 40)]),
            (0..50, &[]),
        ] {
            let mut removed = removed([10..20, 30..40]);
            removed.subtract(&mapped);
            let left: Vec<_> = removed.ranges.iter().map(|r| (r.start, r.end)).collect();
            assert_eq!(left, expected, "{mapped:?}");
        }
    }

    #[test]
    fn only_the_oldest_ranges_are_forgotten() {
        let mut removed = removed(std::iter::once(0..1 << 20));
        for page in 1..1 << 10 {
            removed.subtract(&(page << 10..(page << 10) + 1));
            assert!(removed.ranges.len() <= MAX_REGIONS);
        }
        assert!(!removed.contains(2) && removed.contains((1 << 20) - 1));
    }
}
