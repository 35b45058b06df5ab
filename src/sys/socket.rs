//! Socket options.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::status;

/// `SO_PEEK_OFF`: makes peeks start `offset` bytes after the next byte to read. -1 switches that off.
pub(crate) fn set_peek_offset(socket: BorrowedFd<'_>, offset: i32) -> io::Result<()> {
    let (level, option) = (libc::SOL_SOCKET, libc::SO_PEEK_OFF);
    let len = length_of(&offset)?;
    // SAFETY: the value is valid for its length.
    status(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const offset).cast(), len) })
}

/// `SO_PEERCRED`: returns the process at the other end. Its number is 0 if its PID namespace is not visible to this
/// process, which `rustix` does not support.
pub(crate) fn peer_credentials(socket: BorrowedFd<'_>) -> io::Result<libc::ucred> {
    // SAFETY: all-zero bytes are valid credentials.
    let mut peer: libc::ucred = unsafe { mem::zeroed() };
    let (level, option) = (libc::SOL_SOCKET, libc::SO_PEERCRED);
    let mut len = length_of(&peer)?;
    // SAFETY: the value and its length are valid during the call.
    status(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    })?;
    Ok(peer)
}

fn length_of<T>(value: &T) -> io::Result<libc::socklen_t> {
    libc::socklen_t::try_from(size_of_val(value)).map_err(io::Error::other)
}
