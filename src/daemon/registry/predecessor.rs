//! Waits for a killed process to release an image. Main thread only.

use std::time::{Duration, Instant};

use crate::engine::DiskView;
use crate::holders::is_locked_by_running;
use crate::storage::LockError;

/// The longest wait for a process that is not seen to run.
const PATIENCE: Duration = Duration::from_secs(5);

/// Checks that an image can be locked. Keeps no lock.
///
/// A process that was killed keeps its locks until the kernel has finished its I/O. It may be gone by then: an io_uring
/// outlives its process. So if no running process is seen to hold the lock, this waits longer. The holder may also be
/// hidden: another user's process, one in another container, or one on another host. Looks at other processes, so it
/// must be called before the process is confined.
///
/// # Errors
/// The image is in use, or cannot be locked.
pub(super) fn wait_for_end(view: &DiskView, writable: bool) -> Result<(), LockError> {
    let (mode, deadline) = (view.lock_mode(writable), Instant::now() + PATIENCE);
    let mut told = false;
    loop {
        match view.node.lock(mode) {
            Err(LockError::InUse { path, how, .. })
                if is_worth_waiting(how, deadline) && !is_locked_by_running(&path) =>
            {
                if !told {
                    let disk = path.display().to_string();
                    tracing::info!(
                        disk,
                        seconds = PATIENCE.as_secs(),
                        "the image is in use, but no running process is seen to use it: waiting for a killed one"
                    );
                    told = true;
                }
            }
            result => return result.map(drop),
        }
    }
}

fn is_worth_waiting(how: &str, deadline: Instant) -> bool {
    how != LockError::OURSELVES && Instant::now() < deadline
}
