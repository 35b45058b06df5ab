//! The check for the oldest supported kernel, Linux 5.8.
//!
//! Linux 5.8 is the first kernel that can read an eventfd without waiting, whatever flags the frontend has set on it.
//! Without such reads, either kicks could not be taken or a frontend could block an IOThread. Everything else we need
//! is older. Newer features (parts of io_uring, Landlock) are optional.

use std::io;

use rustix::event::EventfdFlags;

use crate::eventfd;

/// The kernel is not suitable, or could not be checked.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The kernel lacks a feature of Linux 5.8.
    #[error("Linux 5.8 or newer is needed, and this is {release}: it cannot read an eventfd without waiting")]
    TooOld {
        /// The kernel's release, as printed by `uname -r`.
        release: String,
    },
    /// The check itself failed.
    #[error("cannot find out what the kernel supports")]
    Unknown(#[source] io::Error),
}

/// Checks whether this kernel is supported.
///
/// The check tries the needed feature instead of comparing version numbers: distributions add features to old releases,
/// and the release that `uname` prints can be faked.
///
/// # Errors
/// The kernel is too old, or the check itself failed.
pub fn check() -> Result<(), KernelError> {
    let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC);
    let event = event.map_err(|errno| KernelError::Unknown(errno.into()))?;
    eventfd::drain(&event).map_err(|error| match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOSYS) => KernelError::TooOld { release: release() },
        _ => KernelError::Unknown(error),
    })
}

fn release() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease");
    release.map_or_else(|_| "an older one".to_owned(), |text| text.trim_end().to_owned())
}
