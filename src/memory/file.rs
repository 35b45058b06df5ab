//! Files that are shared memory: made here, or received from the frontend.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

use crate::status::status;

/// Makes a file of `len` zero bytes in memory, whose length cannot be changed.
pub(crate) fn memfd(name: &CStr, len: u64) -> io::Result<File> {
    // SAFETY: the name is a C string, the flags are valid.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the fd was just made and nobody else has it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len)?;
    seal(&file, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL)?;
    Ok(file)
}

/// Has a file stay as long as it is, if that can be had: not every file can be sealed.
///
/// One that becomes shorter all the same costs who uses it its memory, and nobody else (see `guard`).
pub(crate) fn keep_length(file: &File) {
    // A file that is sealed already, or never can be, is as good as it gets.
    let _ = seal(file, libc::F_SEAL_SHRINK);
}

fn seal(file: &File, seals: libc::c_int) -> io::Result<()> {
    // SAFETY: F_ADD_SEALS takes an int.
    status(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) })
}
