//! Attributes of files.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::status::status;

/// `fchmodat` that does not follow a symbolic link. The C library finds a way on kernels that have no such call;
/// `rustix` does not.
pub(crate) fn set_mode(path: &Path, mode: libc::mode_t) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let (here, flags) = (libc::AT_FDCWD, libc::AT_SYMLINK_NOFOLLOW);
    // SAFETY: the path is a C string that lives during the call.
    status(unsafe { libc::fchmodat(here, path.as_ptr(), mode, flags) })
}
