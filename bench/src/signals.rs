//! Signals that ask this process to end.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};

/// Returns a flag that is set when this process is asked to end.
///
/// # Errors
/// The signals cannot be handled.
pub(crate) fn interrupted() -> Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted)).context("handle signals")?;
    }
    Ok(interrupted)
}
