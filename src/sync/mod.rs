//! The synchronisation primitives of code that threads share: std's, or loom's in a model.
//!
//! Code built on these runs unchanged under `RUSTFLAGS="--cfg loom" cargo test --release --lib loom`, where loom tries
//! every interleaving.

#[cfg(tsan)]
mod tsan;

#[cfg(not(loom))]
pub(crate) use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence},
};
#[cfg(not(any(loom, tsan)))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
#[cfg(tsan)]
pub(crate) use tsan::{Condvar, Mutex, MutexGuard};

#[cfg(loom)]
pub(crate) use loom::sync::{
    Arc, Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence},
};

/// Locks `mutex`, even if another holder panicked.
///
/// No callback runs under a lock of this crate, so a panicking holder leaves consistent data.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
