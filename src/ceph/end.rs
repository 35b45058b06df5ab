//! The end of a process that has loaded librbd.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::api::Api;
use crate::sys::process::exit_now;

/// The longest wait for images to be closed. The cluster may not answer.
const CLOSE_TIME: Duration = Duration::from_millis(300);

/// The number of open images.
static OPEN: Mutex<usize> = Mutex::new(0);
static CLOSED: Condvar = Condvar::new();

/// An image was opened.
pub(super) fn opened() {
    *OPEN.lock().unwrap_or_else(PoisonError::into_inner) += 1;
}

/// An image was closed.
pub(super) fn closed() {
    *OPEN.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
    CLOSED.notify_all();
}

/// Ends the process with this status if it has loaded librbd, after a short wait for images to be closed. The threads of
/// librbd still run, so no destructor of a library may run.
pub fn end_process(status: u8) {
    if !Api::is_loaded() {
        return;
    }
    let open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    drop(CLOSED.wait_timeout_while(open, CLOSE_TIME, |open| *open > 0));
    exit_now(status.into());
}
