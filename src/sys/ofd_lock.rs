//! Locks of open file descriptions (OFD). `rustix` has only process-owned locks.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::status;

/// `F_OFD_SETLK`: locks or unlocks `len` bytes at `start`. `kind` is `F_RDLCK` or `F_UNLCK`. Never waits.
pub(crate) fn set(fd: BorrowedFd<'_>, kind: i32, start: i64, len: i64) -> io::Result<()> {
    let lock = flock(kind, start, len)?;
    // SAFETY: F_OFD_SETLK reads one `struct flock` through the pointer.
    status(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) })
}

/// `F_OFD_GETLK`: returns whether another open file description holds a lock on the byte at `start`.
pub(crate) fn is_locked(fd: BorrowedFd<'_>, start: i64) -> io::Result<bool> {
    let mut lock = flock(libc::F_WRLCK, start, 1)?;
    // SAFETY: F_OFD_GETLK reads and writes one `struct flock` through the pointer.
    status(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) })?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

fn flock(kind: i32, start: i64, len: i64) -> io::Result<libc::flock> {
    // SAFETY: all-zero bytes are a valid `struct flock`; OFD locks require `l_pid` to be zero.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = small(kind)?;
    lock.l_whence = small(libc::SEEK_SET)?;
    lock.l_start = start;
    lock.l_len = len;
    Ok(lock)
}

fn small(value: i32) -> io::Result<libc::c_short> {
    libc::c_short::try_from(value).map_err(|_| io::ErrorKind::InvalidInput.into())
}
