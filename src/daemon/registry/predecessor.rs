//! Waits for a killed process to release an image. Main thread only.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::engine::DiskView;
use crate::holders::{Holder, holder};
use crate::interrupt;
use crate::storage::LockError;

/// The longest wait for a holder that may be a running process.
const PATIENCE: Duration = Duration::from_secs(5);
/// The time between two lines about the wait.
const REPORTS: Duration = Duration::from_secs(5);

/// Checks that an image can be locked. Keeps no lock.
///
/// A process that was killed keeps its locks until the kernel has finished its I/O. It may be gone by then: an io_uring
/// outlives its process. So if the holder has ended, this waits as long as that takes, or until a signal asks the process
/// to end. If no holder is found, this waits for [`PATIENCE`], because it may also be hidden: another user's process, one
/// in another container, or one on another host. Looks at other processes, so it must be called before the process is
/// confined.
///
/// # Errors
/// The image is in use, or cannot be locked, or a signal asks the process to end.
pub(super) fn wait_for_end(view: &DiskView, writable: bool) -> Result<(), LockError> {
    let (mode, start) = (view.lock_mode(writable), Instant::now());
    let mut next_report = start;
    loop {
        let error = match view.node.lock(mode) {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        let LockError::InUse { path, how, .. } = &error else {
            return Err(error);
        };
        let now = Instant::now();
        let holder = match *how {
            LockError::OURSELVES => Holder::Running,
            _ => holder(path),
        };
        match holder {
            Holder::Running => return Err(error),
            Holder::Hidden if now > start + PATIENCE => return Err(error),
            Holder::Hidden | Holder::Ended => {}
        }
        if interrupt::is_requested() {
            return Err(LockError::Interrupted { path: path.clone() });
        }
        if now >= next_report {
            report(path, holder, now - start);
            next_report = now + REPORTS;
        }
    }
}

fn report(path: &Path, holder: Holder, waited: Duration) {
    let (disk, waited) = (path.display().to_string(), waited.as_secs());
    match holder {
        Holder::Ended => tracing::info!(
            disk,
            waited,
            "the image is in use, but the process that locked it has ended: waiting until its last I/O is over"
        ),
        _ => tracing::info!(
            disk,
            seconds = PATIENCE.as_secs(),
            "the image is in use, but no running process is seen to use it: waiting for a killed one"
        ),
    }
}
