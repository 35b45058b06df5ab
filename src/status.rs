//! System calls that say no more than whether they have succeeded.

use std::io;

/// The outcome of a call that returns 0, or else -1 and `errno`. To be called right after it.
pub(crate) fn status(result: impl Into<i64>) -> io::Result<()> {
    match result.into() {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
