//! Figures with one writer and any number of readers.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number with one writer, which makes it cheaper than an atomic read-modify-write.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. One thread only.
    #[inline]
    pub fn add(&self, n: u64) {
        self.set(self.get().wrapping_add(n));
    }

    /// Subtracts `n`. Only for the thread that adds.
    #[inline]
    pub fn sub(&self, n: u64) {
        self.add(n.wrapping_neg());
    }

    /// Sets the value. Only for the thread that adds.
    #[inline]
    pub fn set(&self, value: u64) {
        // Relaxed: orders no other memory.
        self.0.store(value, Ordering::Relaxed);
    }

    /// Returns the value. Any thread.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
