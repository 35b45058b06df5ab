//! Reads and writes of memory ranges that are not Rust's to look at: the guest's.
//!
//! `rustix` takes slices only.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `preadv`: bytes read, 0 at the end of the file.
pub(crate) fn preadv(file: &File, iov: &[libc::iovec], offset: u64) -> io::Result<usize> {
    let (count, offset) = (iov_count(iov)?, file_offset(offset)?);
    // SAFETY: the list comes from an `IoVecs` (or points to a buffer of ours), whose owner vouches for the memory.
    transferred(unsafe { libc::preadv(file.as_raw_fd(), iov.as_ptr(), count, offset) })
}

/// `preadv` without memory to read into, which fails at the latest when the kernel wants to use it.
pub(crate) fn read_nothing(file: &File, offset: u64, len: u64) -> io::Result<usize> {
    let iov = libc::iovec {
        iov_base: std::ptr::null_mut(),
        iov_len: usize::try_from(len).map_err(io::Error::other)?,
    };
    preadv(file, &[iov], offset)
}

/// `pwritev`: bytes written.
pub(crate) fn pwritev(file: &File, iov: &[libc::iovec], offset: u64) -> io::Result<usize> {
    let (count, offset) = (iov_count(iov)?, file_offset(offset)?);
    // SAFETY: as in `preadv`; the kernel only reads the memory.
    transferred(unsafe { libc::pwritev(file.as_raw_fd(), iov.as_ptr(), count, offset) })
}

/// `pwritev2` with `RWF_DSYNC`: bytes written and stable.
pub(crate) fn pwritev_dsync(file: &File, iov: &[libc::iovec], offset: u64) -> io::Result<usize> {
    let (count, offset) = (iov_count(iov)?, file_offset(offset)?);
    // SAFETY: as in `pwritev`.
    transferred(unsafe { libc::pwritev2(file.as_raw_fd(), iov.as_ptr(), count, offset, libc::RWF_DSYNC) })
}

/// `preadv2` with `RWF_NOWAIT`: bytes read, EAGAIN if it would have to wait.
pub(crate) fn preadv_nowait(file: &File, iov: &[libc::iovec], offset: u64) -> io::Result<usize> {
    let (count, offset) = (iov_count(iov)?, file_offset(offset)?);
    // SAFETY: as in `preadv`.
    transferred(unsafe { libc::preadv2(file.as_raw_fd(), iov.as_ptr(), count, offset, libc::RWF_NOWAIT) })
}

/// `pwritev2` with `RWF_NOWAIT`: bytes written, EAGAIN if it would have to wait.
pub(crate) fn pwritev_nowait(file: &File, iov: &[libc::iovec], offset: u64) -> io::Result<usize> {
    let (count, offset) = (iov_count(iov)?, file_offset(offset)?);
    // SAFETY: as in `pwritev`.
    transferred(unsafe { libc::pwritev2(file.as_raw_fd(), iov.as_ptr(), count, offset, libc::RWF_NOWAIT) })
}

fn iov_count(iov: &[libc::iovec]) -> io::Result<libc::c_int> {
    libc::c_int::try_from(iov.len()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn file_offset(bytes: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn transferred(rc: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(rc).map_err(|_| io::Error::last_os_error())
}
