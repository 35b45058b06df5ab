//! The pid file.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// A file with the pid of this process. It is locked while the process runs and removed at the end.
#[derive(Debug)]
pub(super) struct PidFile {
    path: PathBuf,
    _file: File,
}

impl PidFile {
    /// Writes the file.
    ///
    /// # Errors
    /// The file cannot be written, or another process holds its lock.
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
        // The process ends: nothing is left to do if this fails.
        let _ = std::fs::remove_file(&self.path);
    }
}
