//! The pid file.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::succession;

/// A file with the pid of this process. It is locked while the process runs and removed at the end.
#[derive(Debug)]
pub(super) struct PidFile {
    path: PathBuf,
    file: File,
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
            file,
        })
    }

    /// Uses the file of a predecessor. It still has that one's pid.
    pub(super) fn passed(path: PathBuf, file: File) -> Self {
        Self { path, file }
    }

    /// Writes the pid of this process to a file that was passed.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn rewrite(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        writeln!(self.file, "{}", std::process::id())
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if !succession::may_clean_up() {
            return;
        }
        // The process ends: nothing is left to do if this fails.
        let _ = std::fs::remove_file(&self.path);
    }
}
