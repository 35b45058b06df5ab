//! System calls on files.
//!
//! Calls that change a file or make it stable go through the C library, even if `rustix` wraps them. So a preloaded
//! library can observe them, as in the test of power cuts.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::status;

/// `fchmodat` that does not follow symbolic links. The C library emulates this on kernels without such a call, and
/// `rustix` does not.
pub(crate) fn set_mode(path: &Path, mode: libc::mode_t) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let (here, flags) = (libc::AT_FDCWD, libc::AT_SYMLINK_NOFOLLOW);
    // SAFETY: the path is a C string that lives during the call.
    status(unsafe { libc::fchmodat(here, path.as_ptr(), mode, flags) })
}

/// `sync_file_range` that only fetches the kernel's report of failed writes. Its range is past all pages, so it never
/// waits.
pub(crate) fn take_writeback_error(file: &File) -> io::Result<()> {
    const BEYOND_ALL: i64 = i64::MAX - 1;
    // SAFETY: takes numbers only.
    status(unsafe {
        libc::sync_file_range(file.as_raw_fd(), BEYOND_ALL, 1, libc::SYNC_FILE_RANGE_WAIT_BEFORE)
    })
}

/// `write` of `len` bytes from an unmapped address.
pub(crate) fn write_nothing(file: &File, len: usize) -> io::Result<usize> {
    // SAFETY: no memory is read.
    let written = unsafe { libc::write(file.as_raw_fd(), std::ptr::null(), len) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

/// `fallocate` that does not change the size.
pub(crate) fn fallocate(file: &File, mode: libc::c_int, offset: u64, len: u64) -> io::Result<()> {
    let number = |bytes| libc::off_t::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput);
    let (offset, len) = (number(offset)?, number(len)?);
    let mode = mode | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: takes numbers only.
    status(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) })
}

/// `syncfs`: writes back the whole file system. It fails if data was lost since `file` was opened, or since the last
/// report.
pub(crate) fn sync_file_system(file: &File) -> io::Result<()> {
    // SAFETY: takes a number only.
    status(unsafe { libc::syncfs(file.as_raw_fd()) })
}
