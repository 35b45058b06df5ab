//! The monotonic clock as a number. `Instant` costs more than the call itself. The call does not go through `rustix`,
//! whose own lookup of the vDSO crashes under valgrind.

/// Returns nanoseconds since an arbitrary time in the past.
#[inline]
#[allow(clippy::cast_sign_loss, reason = "the monotonic clock begins at 0")]
pub(crate) fn monotonic_nanos() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is valid for writes. The clock exists everywhere, so the call cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
