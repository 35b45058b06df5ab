//! The resource limits that the process was started with, and how it copes with them.

use std::io;

use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::sys;

/// Raises the limit on open files as far as this process may, and returns it.
///
/// The usual soft limit of 1024 is meant for programs that use `select`. A disk with many queues needs more.
///
/// # Errors
/// The limit cannot be set.
pub fn raise_open_files() -> io::Result<u64> {
    let limit = getrlimit(Resource::Nofile).maximum;
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit,
            maximum: limit,
        },
    )?;
    Ok(limit.unwrap_or(u64::MAX))
}

/// Returns whether the process cannot open another file at the moment.
pub fn out_of_files() -> bool {
    // If stderr is not open, this fails with another error.
    fcntl_dupfd_cloexec(io::stderr(), 0).is_err_and(|errno| is_out_of_files(&errno.into()))
}

/// Returns whether `error` means that no more files can be opened.
pub fn is_out_of_files(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Makes writes past the file size limit fail (EFBIG) instead of ending the process: the guest chooses where it writes.
pub fn survive_file_size_limit() {
    sys::process::ignore_signal(libc::SIGXFSZ);
}
