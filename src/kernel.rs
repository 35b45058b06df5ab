//! The oldest kernel that can be served on.
//!
//! Linux 5.8 is the first that reads an eventfd without waiting, whatever its flags, which are the frontend's. Without that
//! a kick could not be taken, or a frontend could stop an IOThread. What else is needed is older; what is younger (parts of
//! io_uring, Landlock) is done without.

use std::io;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

use crate::eventfd;

/// Why this kernel does not do.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// It lacks what came with Linux 5.8.
    #[error("Linux 5.8 or newer is needed, and this is {release}: it cannot read an eventfd without waiting")]
    TooOld {
        /// As `uname -r` says it.
        release: String,
    },
    /// There is no telling.
    #[error("cannot find out what the kernel can do")]
    Unknown(#[source] io::Error),
}

/// Finds out whether this kernel can be served on.
///
/// It is asked for what is needed, not for its number: distributions add features to old releases, and `uname` can be
/// made to say something else.
///
/// # Errors
/// It is too old, or there is no eventfd to try with.
pub fn check() -> Result<(), KernelError> {
    let event = EventFd::new(EFD_CLOEXEC).map_err(KernelError::Unknown)?;
    eventfd::drain(&event).map_err(|error| match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOSYS) => KernelError::TooOld { release: release() },
        _ => KernelError::Unknown(error),
    })
}

fn release() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease");
    release.map_or_else(|_| "an older one".to_owned(), |text| text.trim_end().to_owned())
}
