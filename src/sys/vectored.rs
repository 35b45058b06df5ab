//! Reads and writes with lists of memory ranges that must not become Rust slices, because the guest can change them.
//!
//! `rustix` accepts only slices.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `preadv`: returns the number of bytes read, or 0 at the end of the file.
pub(crate) fn preadv(file: &File, iov: &[libc::iovec], offset: u64) -> io::Result<usize> {
    let (count, offset) = (iov_count(iov)?, file_offset(offset)?);
    // SAFETY: the list comes from an `IoVecs`, whose owner guarantees the memory, or it points to a buffer of our own.
    transferred(unsafe { libc::preadv(file.as_raw_fd(), iov.as_ptr(), count, offset) })
}

/// `preadv` without memory to read into. It fails at the latest when the kernel accesses the memory.
pub(crate) fn read_nothing(file: &File, offset: u64, len: u64) -> io::Result<usize> {
    let iov = libc::iovec {
        iov_base: std::ptr::null_mut(),
        iov_len: usize::try_from(len).map_err(io::Error::other)?,
    };
    preadv(file, &[iov], offset)
}

/// `pwritev`: returns the number of bytes written.
pub(crate) fn pwritev(file: &File, iov: &[libc::iovec], offset: u64) -> io::Result<usize> {
    let (count, offset) = (iov_count(iov)?, file_offset(offset)?);
    // SAFETY: as in `preadv`. The kernel only reads the memory.
    transferred(unsafe { libc::pwritev(file.as_raw_fd(), iov.as_ptr(), count, offset) })
}

/// `pwritev2` with `RWF_DSYNC`: returns the number of bytes that were written and are stable.
pub(crate) fn pwritev_dsync(file: &File, iov: &[libc::iovec], offset: u64) -> io::Result<usize> {
    let (count, offset) = (iov_count(iov)?, file_offset(offset)?);
    // SAFETY: as in `pwritev`.
    transferred(unsafe { libc::pwritev2(file.as_raw_fd(), iov.as_ptr(), count, offset, libc::RWF_DSYNC) })
}

/// `preadv2` with `RWF_NOWAIT`: returns the number of bytes read, or EAGAIN if it would have to wait.
pub(crate) fn preadv_nowait(file: &File, iov: &[libc::iovec], offset: u64) -> io::Result<usize> {
    let (count, offset) = (iov_count(iov)?, file_offset(offset)?);
    // SAFETY: as in `preadv`.
    transferred(unsafe { libc::preadv2(file.as_raw_fd(), iov.as_ptr(), count, offset, libc::RWF_NOWAIT) })
}

/// Returns whether the kernel accepts `RWF_NOWAIT` for reads of the file. Nothing is read, because there is no memory to
/// read into.
pub(crate) fn supports_nowait(file: &File) -> bool {
    let nothing = libc::iovec {
        iov_base: std::ptr::null_mut(),
        iov_len: 4096,
    };
    let read = preadv_nowait(file, &[nothing], 0);
    !read.is_err_and(|error| error.raw_os_error() == Some(libc::EOPNOTSUPP))
}

/// `pwritev2` with `RWF_NOWAIT`: returns the number of bytes written, or EAGAIN if it would have to wait.
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
