//! The table of the memory that is registered with a ring. Pure data.

use std::cell::Cell;

/// A registered piece of memory: addresses, and its place in the kernel's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    start: usize,
    end: usize,
    place: u16,
}

/// The registered pieces of memory, which do not overlap.
#[derive(Debug)]
pub(super) struct Buffers {
    /// Sorted by address.
    pieces: Vec<Piece>,
    /// The index of the piece that was found last.
    last: Cell<usize>,
    /// Free places in the kernel's table.
    free: Vec<u16>,
}

impl Buffers {
    /// Makes a table with this many places.
    pub(super) fn new(places: u16) -> Self {
        Self {
            pieces: Vec::new(),
            last: Cell::new(0),
            free: (0..places).rev().collect(),
        }
    }

    /// Returns the place that the next piece will have, unless all are taken.
    pub(super) fn next_place(&self) -> Option<u16> {
        self.free.last().copied()
    }

    /// Adds a piece at [`next_place`](Self::next_place).
    pub(super) fn add(&mut self, start: usize, len: usize) {
        let place = self.free.pop().expect("there is a next place");
        let end = start + len;
        let at = self.pieces.partition_point(|piece| piece.start < start);
        self.pieces.insert(at, Piece { start, end, place });
    }

    /// Removes the piece at `place`.
    pub(super) fn remove(&mut self, place: u16) {
        self.pieces.retain(|piece| piece.place != place);
        self.free.push(place);
    }

    /// Returns the place of the piece that has all of these bytes.
    #[inline]
    pub(super) fn find(&self, start: usize, len: usize) -> Option<u16> {
        let has = |piece: &&Piece| piece.start <= start && start < piece.end && len <= piece.end - start;
        if let Some(piece) = self.pieces.get(self.last.get()).filter(has) {
            return Some(piece.place);
        }
        let at = self
            .pieces
            .partition_point(|piece| piece.start <= start)
            .checked_sub(1)?;
        let piece = self.pieces.get(at).filter(has)?;
        self.last.set(at);
        Some(piece.place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ranges_within_one_piece_are_found() {
        let mut buffers = Buffers::new(4);
        buffers.add(0x3000, 0x1000);
        buffers.add(0x1000, 0x1000);
        buffers.add(0x2000, 0x1000);
        for (start, len, place) in [
            (0x1000, 0x1000, Some(1)),
            (0x1fff, 1, Some(1)),
            (0x1fff, 2, None),
            (0x3800, 0x800, Some(0)),
            (0x3800, 0x801, None),
            (0x2010, usize::MAX, None),
            (0xfff, 1, None),
            (0x4000, 1, None),
        ] {
            assert_eq!(buffers.find(start, len), place, "{start:#x}+{len:#x}");
        }
    }

    #[test]
    fn places_are_recycled() {
        let mut buffers = Buffers::new(2);
        buffers.add(0x1000, 0x1000);
        buffers.add(0x2000, 0x1000);
        assert_eq!(buffers.find(0x2000, 1), Some(1));
        assert_eq!(buffers.next_place(), None);
        buffers.remove(1);
        assert_eq!(buffers.find(0x2000, 1), None);
        assert_eq!(buffers.next_place(), Some(1));
        buffers.add(0x8000, 0x1000);
        assert_eq!(
            (buffers.find(0x8000, 1), buffers.find(0x1000, 1)),
            (Some(1), Some(0))
        );
    }
}
