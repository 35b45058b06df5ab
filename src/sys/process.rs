//! Signals and the end of the process.

/// Ignores a signal from now on.
pub(crate) fn ignore_signal(signal: libc::c_int) {
    // SAFETY: runs no code of ours.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Ends the process immediately, without running handlers or destructors.
pub(crate) fn exit_now(status: libc::c_int) -> ! {
    // SAFETY: takes a number only.
    unsafe { libc::_exit(status) }
}
