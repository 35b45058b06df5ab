//! The resource limits that the process was started with, and how it copes with them.

use std::io;

use crate::status::status;

/// Raises the limit on open files as far as this process may, and returns it.
///
/// The usual soft limit of 1024 is meant for programs that use `select`. A disk with many queues needs more.
///
/// # Errors
/// `getrlimit` or `setrlimit` failed.
pub fn raise_open_files() -> io::Result<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is valid memory for the kernel to fill in.
    status(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is a valid limit.
    status(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })?;
    Ok(limit.rlim_cur)
}

/// Returns how many open files a disk may need: three eventfds per queue, an event loop and an engine per IOThread,
/// some regions of guest memory, and a few more.
pub fn open_files_needed(queues: usize, iothreads: u16) -> u64 {
    3 * queues as u64 + 8 * u64::from(iothreads) + 64
}

/// Returns whether the process cannot open another file at the moment.
pub fn out_of_files() -> bool {
    // SAFETY: takes only numbers. If stderr is not open, the call just fails with another error.
    let copy = unsafe { libc::fcntl(libc::STDERR_FILENO, libc::F_DUPFD_CLOEXEC, 0) };
    if copy < 0 {
        return is_out_of_files(&io::Error::last_os_error());
    }
    // SAFETY: `copy` was just made, and nobody else knows it.
    unsafe { libc::close(copy) };
    false
}

/// Returns whether `error` means that no more files can be opened.
pub fn is_out_of_files(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Makes writes past the file size limit fail (EFBIG) instead of ending the process: the guest chooses where it writes.
pub fn survive_file_size_limit() {
    // SAFETY: ignoring a signal runs no code of ours.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}
