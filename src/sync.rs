//! The synchronisation primitives of code that meets between threads: std's, or loom's in a model.
//!
//! Whatever is built on these runs unchanged under `RUSTFLAGS="--cfg loom" cargo test --release --lib loom`, where
//! loom tries every interleaving.

#[cfg(not(loom))]
pub(crate) use std::sync::{
    Arc, Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU64, Ordering, fence},
};

#[cfg(loom)]
pub(crate) use loom::sync::{
    Arc, Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU64, Ordering, fence},
};

/// Locks `mutex`, also after a panic of another holder.
///
/// No callback runs under a lock of this crate, so what a panicking holder leaves behind is consistent.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
