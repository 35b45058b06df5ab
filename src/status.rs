//! The result of system calls that only succeed or fail.

use std::io;

/// Converts the return value of a call that returns 0, or -1 and `errno`. Must be called right after that call.
pub(crate) fn status(result: impl Into<i64>) -> io::Result<()> {
    match result.into() {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
