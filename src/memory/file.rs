//! Files used as shared memory, either created here or received from the frontend.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

use crate::status::status;

/// Creates a file in memory with `len` zero bytes and a sealed length.
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

/// Seals the file against shrinking, if the kernel supports it for this file.
///
/// If an unsealed file shrinks later, only its user loses memory (see `guard`).
pub(crate) fn keep_length(file: &File) {
    // An error means that the file is sealed already or cannot be sealed; `guard` handles the latter.
    let _ = seal(file, libc::F_SEAL_SHRINK);
}

fn seal(file: &File, seals: libc::c_int) -> io::Result<()> {
    // SAFETY: F_ADD_SEALS takes an int.
    status(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) })
}
