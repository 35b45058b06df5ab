//! Requests that wait for a limit, and who waits.

/// The direction of a request, for the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Reads from the disk.
    Read,
    /// All other limited requests: writes, discards, zeroes.
    Write,
}

impl Direction {
    pub(crate) fn index(self) -> usize {
        match self {
            Self::Read => 0,
            Self::Write => 1,
        }
    }

    /// Returns the buckets that a request in this direction fills; see `ThrottleLimits::rates`.
    pub(super) fn buckets(self) -> [usize; 4] {
        match self {
            Self::Read => [0, 1, 3, 4],
            Self::Write => [0, 2, 3, 5],
        }
    }
}

/// Identifies a disk in a group.
pub(super) type MemberId = u64;
/// Identifies a disk on one IOThread.
pub(super) type LaneId = u64;

/// A waiting request. Its lane holds the request itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    pub(super) lane: LaneId,
    pub(super) direction: Direction,
    /// Numbers the tickets of a group in the order of their arrival.
    pub(super) number: u64,
    pub(super) bytes: u64,
}
