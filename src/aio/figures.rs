//! Counts how an event loop waits.

use crate::counter::Counter;

/// The waits of an event loop since it was made. Its thread writes, any thread reads.
#[derive(Debug, Default)]
pub struct LoopFigures {
    /// Waits that began with busy polling.
    pub polls: Counter,
    /// Waits that ended during busy polling.
    pub poll_hits: Counter,
    /// Waits in the kernel.
    pub sleeps: Counter,
}
