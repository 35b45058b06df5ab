//! Finds the processes that have a file open, for error messages.
//!
//! At the start only: the sandbox takes `/proc` away. A process that belongs to another user shows its open files to
//! root only.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Processes that are named in a message.
const SHOWN: usize = 3;

/// The other processes that have the file at `path` open, e.g. `process 123 (qemu-system-x86)`; those that hold a lock
/// on it, if there are any. `None` if none is found.
pub fn holders(path: &Path) -> Option<String> {
    let path = fs::canonicalize(path).ok()?;
    let file = identity(&path)?;
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let others = numbers.filter(|&pid: &u32| pid != std::process::id());
    let mut found: Vec<(u32, bool)> = others
        .filter_map(|pid| Some((pid, locks(pid, &path, file)?)))
        .collect();
    if found.iter().any(|&(_, locks)| locks) {
        found.retain(|&(_, locks)| locks);
    }
    let named: Vec<String> = found.iter().take(SHOWN).map(|&(pid, _)| process(pid)).collect();
    (!named.is_empty()).then(|| named.join(", "))
}

/// A process with its name.
pub fn process(pid: u32) -> String {
    match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("process {pid} ({})", name.trim_end()),
        Err(_) => format!("process {pid}"),
    }
}

/// Whether a process that has the file open holds a lock on it; `None` if it does not have it open.
fn locks(pid: u32, path: &Path, file: (u64, u64)) -> Option<bool> {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
    let numbers: Vec<OsString> = fds
        .filter(|fd| leads_to(&fd.path(), path, file))
        .map(|fd| fd.file_name())
        .collect();
    let is_locked = |number: &OsString| {
        let info = Path::new("/proc")
            .join(pid.to_string())
            .join("fdinfo")
            .join(number);
        fs::read_to_string(info).is_ok_and(|text| text.lines().any(|line| line.starts_with("lock:")))
    };
    (!numbers.is_empty()).then(|| numbers.iter().any(is_locked))
}

/// Whether the descriptor behind `link` is the file. The name is compared first: it costs little, and asking for the
/// identity of any other file may wait for a server that does not answer.
fn leads_to(link: &Path, path: &Path, file: (u64, u64)) -> bool {
    // In another mount namespace only the last part is the same.
    let named = fs::read_link(link).is_ok_and(|target| target.file_name() == path.file_name());
    named && identity(link) == Some(file)
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_with_the_file_open_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(holders(file.path()), None, "this process does not count");
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(file.reopen().unwrap())
            .spawn()
            .unwrap();
        let found = holders(file.path()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.starts_with(&format!("process {} (", child.id())), "{found}");
    }
}
