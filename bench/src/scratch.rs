//! Temporary directories that are removed even if this process is killed.
//!
//! `Drop` removes the directories at a normal end and after an error. After a SIGKILL the janitor removes them: a child
//! process that waits until the pipe from this process closes, and then removes the directories that still exist.

use std::io::{ErrorKind, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use tempfile::TempDir;

/// Directories for sockets, logs and images.
#[derive(Debug)]
pub(crate) struct Scratch {
    memory: TempDir,
    disk: TempDir,
    // Dropped last: the janitor wakes up after the directories have been removed.
    _janitor: Janitor,
}

impl Scratch {
    /// Creates one directory in /dev/shm and one in `disk_dir`.
    pub(crate) fn new(disk_dir: &Path) -> Result<Self> {
        let make = |parent: &Path| {
            tempfile::Builder::new()
                .prefix("vhost-user-blk-bench-")
                .tempdir_in(parent)
                .with_context(|| format!("create a directory in {}", parent.display()))
        };
        let (memory, disk) = (make(Path::new("/dev/shm"))?, make(disk_dir)?);
        let janitor = Janitor::start(&[memory.path(), disk.path()])?;
        Ok(Self {
            memory,
            disk,
            _janitor: janitor,
        })
    }

    /// The directory in memory, for sockets, logs and tmpfs images.
    pub(crate) fn memory(&self) -> &Path {
        self.memory.path()
    }

    /// The directory on the file system under test.
    pub(crate) fn disk(&self) -> &Path {
        self.disk.path()
    }
}

/// The child process that removes the directories if this process was killed.
#[derive(Debug)]
struct Janitor(Child);

impl Janitor {
    fn start(dirs: &[&Path]) -> Result<Self> {
        let exe = std::env::current_exe().context("find this program")?;
        let child = Command::new(exe)
            .arg("--janitor")
            .args(dirs)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // In its own process group: Ctrl-C in the terminal must not reach it.
            .process_group(0)
            .spawn()
            .context("start the process that removes temporary files")?;
        Ok(Self(child))
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Waits for the end of `input`, then removes `dirs`. Runs in the janitor process.
pub(crate) fn janitor(mut input: impl Read, dirs: &[PathBuf]) {
    let mut byte = [0];
    loop {
        match input.read(&mut byte) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Ok(1) => {}
            _ => break,
        }
    }
    for dir in dirs {
        // After a normal end, the directory no longer exists.
        let _ = std::fs::remove_dir_all(dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_janitor_removes_directories_when_its_input_closes() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("scratch");
        std::fs::create_dir(&inner).unwrap();
        std::fs::write(inner.join("disk.img"), "x").unwrap();
        janitor(
            std::io::empty(),
            &[inner.clone(), dir.path().join("never existed")],
        );
        assert!(!inner.exists());
    }
}
