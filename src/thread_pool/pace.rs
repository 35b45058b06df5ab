//! The pace of jobs, which determines how many workers help.

use std::time::Duration;

/// The time that jobs took, and the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// Each took less than [`QUICK`].
    Quick,
    /// The last one took longer, and kept a CPU busy: more workers than CPUs would not help.
    Busy,
    /// The last one took longer, and slept.
    Blocking,
}

/// A job that takes less than this is quick: it does not block.
pub(super) const QUICK: Duration = Duration::from_micros(5);
