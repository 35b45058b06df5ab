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
    #[error(
        "{0} sockets were passed for one disk: use a single ListenStream= in the socket unit, or give each disk its own \
         with --export addr.type=fd,addr.str=NAME"
    )]
    Several(usize),
    /// Several sockets have one name, so nothing tells which disk each belongs to.
    #[error("several sockets are named '{0}': give each socket unit a FileDescriptorName= of its own")]
    SameName(String),
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

/// A socket that a service manager has passed.
#[derive(Debug)]
pub struct Passed {
    /// The number of its descriptor.
    pub number: RawFd,
    /// Its name (systemd's `FileDescriptorName=`), or `unknown` if the sockets have no names.
    pub name: String,
}

/// Returns the sockets passed by a service manager (`LISTEN_FDS`, `LISTEN_FDNAMES`), and closes them at exec.
///
/// # Errors
/// The environment variables are wrong, or a socket is not open.
pub fn from_service_manager() -> Result<Vec<Passed>, InheritedError> {
    // Names alone, of sockets that another process gets, would be an error.
    let is_of_another = |pid: String| pid.parse::<u32>().is_ok_and(|pid| pid != std::process::id());
    if std::env::var("LISTEN_PID").is_ok_and(is_of_another) {
        return Ok(Vec::new());
    }
    let fds = sd_notify::listen_fds_with_names().map_err(InheritedError::Environment)?;
    Ok(fds.map(|(number, name)| Passed { number, name }).collect())
}
