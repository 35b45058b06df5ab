//! Sockets that this process inherited.
//!
//! They are taken before the process opens anything itself: afterwards the number of a descriptor does not tell whether
//! it was inherited.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::fcntl_getfd;

/// The reason why an inherited socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InheritedError {
    /// The descriptor is not open.
    #[error("file descriptor {0} is not open: the program that starts this process must pass it")]
    Closed(RawFd),
    /// The environment variables do not follow the socket activation protocol.
    #[error("cannot take over the socket from the service manager")]
    Environment(#[source] io::Error),
    /// More than one socket was passed, but a disk has one socket.
    #[error("{0} sockets were passed for one disk: use a single ListenStream= in the socket unit")]
    Several(usize),
}

/// Takes over the descriptor with this number.
///
/// # Errors
/// The descriptor is not open.
///
/// # Safety
/// Nothing else in this process owns the descriptor.
pub unsafe fn by_number(fd: RawFd) -> Result<OwnedFd, InheritedError> {
    // SAFETY: not owned, and F_GETFD is harmless on any number.
    let flags = fcntl_getfd(unsafe { BorrowedFd::borrow_raw(fd) });
    flags.map_err(|_| InheritedError::Closed(fd))?;
    // SAFETY: the descriptor is open, and the caller promises that it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes over the socket passed by a service manager (`LISTEN_FDS`), if there is one.
///
/// # Errors
/// There are several sockets, or the environment variables are wrong.
///
/// # Safety
/// Nothing else in this process owns descriptors from 3 on.
pub unsafe fn from_service_manager() -> Result<Option<OwnedFd>, InheritedError> {
    let mut fds = sd_notify::listen_fds().map_err(InheritedError::Environment)?;
    match (fds.next(), fds.len()) {
        (None, _) => Ok(None),
        // SAFETY: the caller's promise.
        (Some(fd), 0) => unsafe { by_number(fd) }.map(Some),
        (Some(_), more) => Err(InheritedError::Several(1 + more)),
    }
}
