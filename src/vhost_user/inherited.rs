//! Sockets that this process was started with.
//!
//! They are taken before the process opens anything itself: after that a number says nothing about where its
//! descriptor comes from.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use crate::status::status;

/// Why no socket was handed over.
#[derive(Debug, thiserror::Error)]
pub enum InheritedError {
    /// The descriptor is not open.
    #[error("file descriptor {0} is not open: whoever starts this process must hand it over")]
    Closed(RawFd),
    /// The environment is not as the protocol asks.
    #[error("cannot take over the socket")]
    Environment(#[source] io::Error),
    /// One disk has one socket.
    #[error(
        "{0} sockets were handed over, and one disk is served: have one ListenStream= in the socket unit"
    )]
    Several(usize),
}

/// Takes over the descriptor with this number.
///
/// # Errors
/// It is not open.
///
/// # Safety
/// Nobody else in this process owns it.
pub unsafe fn by_number(fd: RawFd) -> Result<OwnedFd, InheritedError> {
    // SAFETY: F_GETFD on any number is harmless.
    status(unsafe { libc::fcntl(fd, libc::F_GETFD) }.min(0)).map_err(|_| InheritedError::Closed(fd))?;
    // SAFETY: it is open, and the caller says that it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes over the socket that a service manager says it has handed over (`LISTEN_FDS`), if it has.
///
/// # Errors
/// There are several, or not those that the environment speaks of.
///
/// # Safety
/// Nobody else in this process owns descriptors from 3 on.
pub unsafe fn from_service_manager() -> Result<Option<OwnedFd>, InheritedError> {
    let mut fds = sd_notify::listen_fds().map_err(InheritedError::Environment)?;
    match (fds.next(), fds.len()) {
        (None, _) => Ok(None),
        // SAFETY: the caller's.
        (Some(fd), 0) => unsafe { by_number(fd) }.map(Some),
        (Some(_), more) => Err(InheritedError::Several(1 + more)),
    }
}
