//! A signal's request to end the process. Waits at the start look for it, because nobody handles events then.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::{SigId, flag};

/// The reason that a wait gives when it ends early.
pub(crate) const TOLD: &str = "a signal ends the daemon";

static REQUESTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Makes this signal a request to end. Main thread.
///
/// # Errors
/// The signal cannot be handled.
pub(crate) fn watch(signal: i32) -> io::Result<SigId> {
    flag::register(signal, Arc::clone(REQUESTED.get_or_init(Arc::default)))
}

/// Returns whether a signal has asked the process to end. Any thread.
pub(crate) fn is_requested() -> bool {
    // SeqCst, as in `flag::register`.
    REQUESTED
        .get()
        .is_some_and(|raised| raised.load(Ordering::SeqCst))
}
