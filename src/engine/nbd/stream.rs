//! System calls on a connection. Their memory is the guest's, so it never becomes a Rust slice.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

/// The largest number of ranges of one call.
pub(super) const RANGES_MAX: usize = 1024;

/// A list of ranges. The addresses are used during one system call only.
#[derive(Default)]
pub(super) struct Ranges(pub(super) Vec<libc::iovec>);

impl fmt::Debug for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ranges")
    }
}

/// Reads what has arrived. Returns 0 at the end.
///
/// # Safety
/// The ranges are valid for writes.
pub(super) unsafe fn read(socket: &impl AsRawFd, ranges: &[libc::iovec]) -> io::Result<usize> {
    let count = count(ranges)?;
    // An offset of -1 makes this `readv`, which the filters of an IOThread do not know.
    // SAFETY: the caller's promise.
    transferred(|| unsafe { libc::preadv2(fd(socket), ranges.as_ptr(), count, -1, 0) })
}

/// Writes as much as there is room for.
///
/// # Safety
/// The ranges are valid for reads.
pub(super) unsafe fn write(socket: &impl AsRawFd, ranges: &[libc::iovec]) -> io::Result<usize> {
    let count = count(ranges)?;
    // SAFETY: the caller's promise.
    transferred(|| unsafe { libc::writev(fd(socket), ranges.as_ptr(), count) })
}

fn fd(socket: &impl AsRawFd) -> RawFd {
    socket.as_raw_fd()
}

fn count(ranges: &[libc::iovec]) -> io::Result<libc::c_int> {
    libc::c_int::try_from(ranges.len()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn transferred(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(bytes) => return Ok(bytes),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}
