//! The file with the process's number.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// A file with the number of this process, locked while it lives and removed afterwards.
#[derive(Debug)]
pub(super) struct PidFile {
    path: PathBuf,
    _file: File,
}

impl PidFile {
    /// Writes the file.
    ///
    /// # Errors
    /// It cannot be written, or another process has it locked.
    pub(super) fn write(path: &Path) -> io::Result<Self> {
        let mut options = File::options();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        file.set_len(0)?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Self {
            path: path.to_owned(),
            _file: file,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // There is nobody left to tell.
        let _ = std::fs::remove_file(&self.path);
    }
}
