//! Files used as shared memory, either created here or received from the frontend.

use std::ffi::CStr;
use std::fs::File;
use std::io;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// Creates a file in memory with `len` zero bytes and a sealed length.
pub(crate) fn memfd(name: &CStr, len: u64) -> io::Result<File> {
    let file = File::from(memfd_create(
        name,
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )?);
    file.set_len(len)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}

/// Seals the file against shrinking, if the kernel supports it for this file.
///
/// If an unsealed file shrinks later, only its user loses memory (see `guard`).
pub(crate) fn keep_length(file: &File) {
    // An error means that the file is sealed already or cannot be sealed; `guard` handles the latter.
    let _ = fcntl_add_seals(file, SealFlags::SHRINK);
}
