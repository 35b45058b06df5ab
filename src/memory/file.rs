//! Files used as shared memory, either created here or received from the frontend.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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

/// Whether the frontend's files are kept after they were mapped.
static KEEPS: AtomicBool = AtomicBool::new(false);

/// Keeps the files that frontends share from now on, so that another process can map them too. Call this before there
/// are frontends.
pub(crate) fn keep_files() {
    // Relaxed: the threads that map files are created later.
    KEEPS.store(true, Ordering::Relaxed);
}

/// Returns whether files are kept.
pub(crate) fn keeps_files() -> bool {
    KEEPS.load(Ordering::Relaxed)
}

/// Returns a duplicate of a file that was mapped, if files are kept.
///
/// # Errors
/// No file descriptor is left.
pub(crate) fn kept(file: &File) -> io::Result<Option<Arc<File>>> {
    match keeps_files() {
        true => file.try_clone().map(|file| Some(Arc::new(file))),
        false => Ok(None),
    }
}

/// Seals the file against shrinking, if the kernel supports it for this file.
///
/// If an unsealed file shrinks later, only its user loses memory (see `guard`).
pub(crate) fn keep_length(file: &File) {
    // An error means that the file is sealed already or cannot be sealed; `guard` handles the latter.
    let _ = fcntl_add_seals(file, SealFlags::SHRINK);
}
