//! Counters and states with one writer and any number of readers.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// A counter with one writer, which makes it cheaper than an atomic read-modify-write.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. One thread only.
    #[inline]
    pub fn add(&self, n: u64) {
        // Relaxed: orders no other memory.
        self.0
            .store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Subtracts `n`. Only for the thread that adds.
    pub fn sub(&self, n: u64) {
        self.add(n.wrapping_neg());
    }

    /// Returns the value. Any thread.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

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
