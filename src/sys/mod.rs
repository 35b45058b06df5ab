//! System calls that no other crate wraps. Each function makes one call. Any thread.
//!
//! This module makes no decisions and never retries: a call has one result, and `errno` becomes an [`io::Error`]. Calls
//! that `rustix` wraps are made through `rustix`, directly where they are needed.

pub(crate) mod block_device;
pub(crate) mod clock;
pub(crate) mod file;
pub(crate) mod linux_aio;
pub(crate) mod ofd_lock;
pub(crate) mod process;
pub(crate) mod residency;
pub(crate) mod seccomp;
pub(crate) mod socket;
pub(crate) mod vectored;

use std::io;

/// Converts the return value of a call that returns 0, or -1 and `errno`. Must be called right after that call.
pub(crate) fn status(result: impl Into<i64>) -> io::Result<()> {
    match result.into() {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
