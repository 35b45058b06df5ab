//! The result of the rounds.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::disks::Footprint;

/// Rounds in a segment.
pub(super) const PER_SEGMENT: u32 = 25;
/// Rounds of segments before what the process holds is noted for the first time.
pub(super) const WARM: usize = 4;

/// What happens during a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Segment {
    /// Nothing.
    Quiet,
    /// Disks of another process come and go.
    Elsewhere,
    /// Disks of the process under test come and go.
    Here,
}

/// One segment's latencies, in nanoseconds.
pub(super) type Latencies = Histogram<u64>;

/// The result of all rounds.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    /// Time of each round on the process under test.
    pub(super) took: Vec<Duration>,
    pub(super) segments: Vec<(Segment, Latencies)>,
    pub(super) warm: Holdings,
    pub(super) end: Holdings,
}

/// What a process holds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Holdings {
    pub(super) footprint: Footprint,
    pub(super) mappings: usize,
}
