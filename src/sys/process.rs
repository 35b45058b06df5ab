//! Signals, files and the end of the process.

use std::fs;
use std::io;
use std::os::fd::RawFd;

use super::status;

/// The CPU time that a thread has used, and the number of times that it lost its CPU to another thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CpuUsage {
    /// Nanoseconds, in steps of microseconds.
    pub(crate) cpu: u64,
    pub(crate) preemptions: u64,
}

/// Ignores a signal from now on.
pub(crate) fn ignore_signal(signal: libc::c_int) {
    // SAFETY: runs no code of ours.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Ignores the daemon's signals in a process that was forked from it.
///
/// The daemon's handlers write to its descriptors. A service manager or a terminal may signal all processes of a service,
/// but a helper is needed until the daemon has ended.
pub(crate) fn ignore_signals_of_daemon() {
    for signal in [
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGHUP,
        libc::SIGQUIT,
        libc::SIGUSR1,
    ] {
        ignore_signal(signal);
    }
}

/// Returns how many times the calling thread has slept: it has given up its CPU by itself.
pub(crate) fn thread_sleeps() -> libc::c_long {
    thread_rusage().ru_nvcsw
}

/// Returns the CPU time of the calling thread, and how many times it has lost its CPU to another thread.
pub(crate) fn thread_usage() -> CpuUsage {
    let usage = thread_rusage();
    let micros = |time: libc::timeval| u64::try_from(time.tv_sec * 1_000_000 + time.tv_usec).unwrap_or(0);
    CpuUsage {
        cpu: (micros(usage.ru_utime) + micros(usage.ru_stime)) * 1000,
        preemptions: u64::try_from(usage.ru_nivcsw).unwrap_or(0),
    }
}

fn thread_rusage() -> libc::rusage {
    // SAFETY: a struct of numbers, for which all bits 0 are a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills the struct. The call cannot fail with these arguments.
    unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
    usage
}

/// Closes all descriptors from `first` up to, but not including, `end`: `close_range`, or one `close` for each before
/// Linux 5.9.
///
/// # Safety
/// Nothing uses these descriptors any more.
pub(crate) unsafe fn close_from_to(first: u32, end: u32) -> io::Result<()> {
    if first >= end {
        return Ok(());
    }
    // SAFETY: takes numbers only; the caller promises that the descriptors are unused.
    let closed = status(unsafe { libc::syscall(libc::SYS_close_range, first, end - 1, 0) });
    match closed {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {}
        closed => return closed,
    }
    let open = fs::read_dir("/proc/self/fd")?.flatten();
    let open: Vec<u32> = open
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    for fd in open.into_iter().filter(|fd| (first..end).contains(fd)) {
        if let Ok(fd) = i32::try_from(fd) {
            // SAFETY: the caller's promise. The descriptor of the list itself is closed already, so this fails for it.
            unsafe { libc::close(fd) };
        }
    }
    Ok(())
}

/// Ends the process immediately, without running handlers or destructors.
pub(crate) fn exit_now(status: libc::c_int) -> ! {
    // SAFETY: takes a number only.
    unsafe { libc::_exit(status) }
}

/// Closes all files but these, and standard input, output and error.
///
/// # Safety
/// No owner of another file uses it any more.
pub(crate) unsafe fn close_all_but(kept: &[RawFd]) -> io::Result<()> {
    let mut kept: Vec<u32> = kept.iter().map(|fd| fd.unsigned_abs()).collect();
    kept.sort_unstable();
    let mut first = 3;
    for end in kept.into_iter().chain([u32::MAX]) {
        // SAFETY: the caller's promise.
        unsafe { close_from_to(first, end) }?;
        first = first.max(end.saturating_add(1));
    }
    Ok(())
}
