//! Limits that the process was started with, and what to do about them.

use std::io;

use crate::status::status;

/// Raises the limit of open files as far as this process may; returns it.
///
/// The usual soft limit of 1024 is for programs that use `select`; a disk with many queues needs more.
///
/// # Errors
/// Those of `getrlimit` and `setrlimit`.
pub fn raise_open_files() -> io::Result<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is filled in.
    status(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is a valid limit.
    status(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })?;
    Ok(limit.rlim_cur)
}

/// Open files that a disk may need: three eventfds per queue, an event loop and an engine per IOThread, some regions of
/// guest memory, and a few more.
pub fn open_files_needed(queues: u16, iothreads: u16) -> u64 {
    3 * u64::from(queues) + 8 * u64::from(iothreads) + 64
}

/// True if no further file can be opened just now.
pub fn out_of_files() -> bool {
    // SAFETY: takes a number; stderr is open, and if not the call just fails otherwise.
    let copy = unsafe { libc::fcntl(libc::STDERR_FILENO, libc::F_DUPFD_CLOEXEC, 0) };
    if copy < 0 {
        return is_out_of_files(&io::Error::last_os_error());
    }
    // SAFETY: made just now, and nobody else knows it.
    unsafe { libc::close(copy) };
    false
}

/// True for the errors that say so.
pub fn is_out_of_files(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Has writes beyond the limit of a file's size fail (EFBIG) instead of end the process: the guest says where it writes.
pub fn survive_file_size_limit() {
    // SAFETY: ignoring a signal runs no code of ours.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}
