//! Temporary directories that disappear whatever happens to this process.
//!
//! A normal end and every error remove them in `Drop`. For a SIGKILL there is the janitor: a child that
//! does nothing but wait until the pipe from this process closes, and then removes what is left.

use std::io::{ErrorKind, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use tempfile::TempDir;

/// Directories for sockets, logs and images, removed at the end.
#[derive(Debug)]
pub(crate) struct Scratch {
    memory: TempDir,
    disk: TempDir,
    // Last, so that it is told after the others were removed.
    _janitor: Janitor,
}

impl Scratch {
    /// Makes one directory in /dev/shm and one in `disk_dir`.
    pub(crate) fn new(disk_dir: &Path) -> Result<Self> {
        let make = |parent: &Path| {
            tempfile::Builder::new()
                .prefix("vhost-user-blk-bench-")
                .tempdir_in(parent)
                .with_context(|| format!("make a directory in {}", parent.display()))
        };
        let (memory, disk) = (make(Path::new("/dev/shm"))?, make(disk_dir)?);
        let janitor = Janitor::start(&[memory.path(), disk.path()])?;
        Ok(Self {
            memory,
            disk,
            _janitor: janitor,
        })
    }

    /// In memory: sockets, logs, tmpfs images.
    pub(crate) fn memory(&self) -> &Path {
        self.memory.path()
    }

    /// On the file system under test.
    pub(crate) fn disk(&self) -> &Path {
        self.disk.path()
    }
}

/// The child that outlives this process by a moment.
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
            // A group of its own: Ctrl-C in the terminal must not reach it.
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

/// What the janitor process runs: waits for the end of `input`, then removes `dirs`.
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
        // Gone already after a normal end.
        let _ = std::fs::remove_dir_all(dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_janitor_removes_everything_when_its_input_closes() {
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
