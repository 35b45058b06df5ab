//! The system calls that install seccomp filters.

use std::io;

use seccompiler::sock_filter;

use super::status;

/// Whether the kernel's log has the calls that a filter does not simply allow. It always has calls that kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Logged {
    Yes,
    No,
}

/// Checks that the kernel supports filters that kill the process.
pub(crate) fn probe() -> io::Result<()> {
    let action = libc::SECCOMP_RET_KILL_PROCESS;
    let operation = libc::SECCOMP_GET_ACTION_AVAIL;
    // SAFETY: the kernel reads one number through the pointer.
    status(unsafe { libc::syscall(libc::SYS_seccomp, operation, 0, &raw const action) })
}

/// Installs a filter on the calling thread, like `seccompiler::apply_filter`, but without restricting the processor's
/// speculation. So the filter makes nothing slower, even on kernels before 5.16.
pub(crate) fn install(program: &[sock_filter], logged: Logged) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: program.len().try_into().map_err(io::Error::other)?,
        filter: program.as_ptr().cast_mut().cast(),
    };
    let log = match logged {
        Logged::Yes => libc::SECCOMP_FILTER_FLAG_LOG,
        Logged::No => 0,
    };
    let (operation, flags) = (
        libc::SECCOMP_SET_MODE_FILTER,
        libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW | log,
    );
    // SAFETY: the kernel copies the program. Its instructions have the layout of the C library's `sock_filter`.
    status(unsafe { libc::syscall(libc::SYS_seccomp, operation, flags, &raw const program) })
}
