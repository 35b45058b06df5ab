//! The state of a ring: one writer, any number of readers.

use std::sync::atomic::{AtomicU8, Ordering};

/// The state of a queue's ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingState {
    /// The ring is not set up.
    Stopped,
    /// The ring is set up.
    Running,
    /// The driver broke the rules, or memory was lost. The ring stays idle until it is set up again.
    Broken,
    /// The ring waits for memory that the frontend has removed.
    Paused,
}

/// The state of a ring. Its IOThread writes it, any thread reads it.
#[derive(Debug, Default)]
pub struct RingStateCell(AtomicU8);

impl RingStateCell {
    /// Sets the state. IOThread only.
    pub fn set(&self, state: RingState) {
        // Relaxed: orders no other memory.
        self.0.store(state as u8, Ordering::Relaxed);
    }

    /// Returns the name of the state.
    pub fn name(&self) -> &'static str {
        match self.0.load(Ordering::Relaxed) {
            0 => "stopped",
            1 => "running",
            2 => "broken",
            _ => "paused",
        }
    }
}
