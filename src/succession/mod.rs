//! The line between a process and the one that takes over from it: frames of JSON with file descriptors, and the mark of
//! a process that may not clean up yet.
//!
//! Knows nothing of what is handed over. Main thread.

mod bundle;
mod line;

use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) use bundle::{Bundle, MissingFile};
pub(crate) use line::{Line, LineError};

/// Another process owns the images and sockets that this one has, too.
static SHARED: AtomicBool = AtomicBool::new(false);

/// This process has received files that its predecessor still uses. Until [`is_over`], its end leaves locks and names
/// alone.
pub(crate) fn begin() {
    // Relaxed: only the end of this process depends on it, and threads are created later.
    SHARED.store(true, Ordering::Relaxed);
}

/// This process is the owner from now on.
pub(crate) fn is_over() {
    SHARED.store(false, Ordering::Relaxed);
}

/// Returns whether this process may remove the names of sockets and release locks.
pub(crate) fn may_clean_up() -> bool {
    !SHARED.load(Ordering::Relaxed)
}
