//! Clocks as numbers. `Instant` costs more than the call itself. The calls do not go through `rustix`, whose own lookup
//! of the vDSO crashes under valgrind.

use std::io;

/// Returns nanoseconds since an arbitrary time in the past.
#[inline]
pub(crate) fn monotonic_nanos() -> u64 {
    let mut now = ZERO;
    // SAFETY: `now` is valid for writes. The clock exists everywhere, so the call cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    nanos(now)
}

/// Returns the CPU time of this process in nanoseconds.
pub(crate) fn process_nanos() -> io::Result<u64> {
    read(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// Returns the CPU time of a thread of this process in nanoseconds.
///
/// # Errors
/// The process has no thread with this id.
pub(crate) fn thread_nanos(thread_id: i32) -> io::Result<u64> {
    // The kernel's encoding of a thread's clock, as in `pthread_getcpuclockid`.
    read((!thread_id << 3) | 6)
}

fn read(clock: libc::clockid_t) -> io::Result<u64> {
    let mut now = ZERO;
    // SAFETY: `now` is valid for writes.
    super::status(unsafe { libc::clock_gettime(clock, &raw mut now) })?;
    Ok(nanos(now))
}

const ZERO: libc::timespec = libc::timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

#[inline]
#[allow(clippy::cast_sign_loss, reason = "these clocks begin at 0")]
fn nanos(time: libc::timespec) -> u64 {
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_have_clocks_of_their_own() {
        let own = rustix::thread::gettid().as_raw_pid();
        let before = thread_nanos(own).unwrap();
        while thread_nanos(own).unwrap() == before {}
        assert!(process_nanos().unwrap() >= thread_nanos(own).unwrap());
        assert!(thread_nanos(1).is_err() || std::process::id() == 1);
    }
}
