//! Finds the processes that have a file open, for error messages, and whether they still run.
//!
//! At the start only: the sandbox takes `/proc` away. A process that belongs to another user shows its open files to
//! root only.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

mod remains;

/// Processes that are named in a message.
const SHOWN: usize = 3;
/// The flag in `/proc/PID/stat` of a task that exits (`PF_EXITING`).
const EXITING: u32 = 4;

/// The other processes that have the file at `path` open, e.g. `process 123 (qemu-system-x86)`; those that hold a lock
/// on it, if there are any. `None` if none is found.
pub fn holders(path: &Path) -> Option<String> {
    let mut found = users(path)?;
    if found.iter().any(|&(_, locks)| locks) {
        found.retain(|&(_, locks)| locks);
    }
    let named: Vec<String> = found.iter().take(SHOWN).map(|&(pid, _)| process(pid)).collect();
    (!named.is_empty()).then(|| named.join(", "))
}

/// The holder of a lock on a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A process that runs.
    Running,
    /// A process that has ended or is about to end. The kernel keeps its locks until its last I/O is over.
    Ended,
    /// Not known: it may be a process that this one cannot see.
    Hidden,
}

/// Returns the holder of a lock on the file at `path`, which another process than this one has locked.
pub fn holder(path: &Path) -> Holder {
    let users = users(path).unwrap_or_default();
    let mut locking = users.iter().filter(|&&(_, locks)| locks);
    if locking.clone().any(|&(pid, _)| !is_ending(pid)) {
        return Holder::Running;
    }
    match locking.next().is_some() || remains::nobody_has(path) {
        true => Holder::Ended,
        false => Holder::Hidden,
    }
}

/// The other processes that have the file at `path` open, and whether they hold a lock on it.
fn users(path: &Path) -> Option<Vec<(u32, bool)>> {
    let path = fs::canonicalize(path).ok()?;
    let file = identity(&path)?;
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let others = numbers.filter(|&pid: &u32| pid != std::process::id());
    let found = others.filter_map(|pid| Some((pid, locks(pid, &path, file)?)));
    Some(found.collect())
}

/// Whether a process has been killed, is exiting, or is gone.
fn is_ending(pid: u32) -> bool {
    let read = |name| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    // The name, which may contain anything, ends with the last parenthesis. The seventh field after it has the flags.
    let stat = read("stat");
    let fields = stat.rsplit_once(')').map(|(_, fields)| fields.split_whitespace());
    let flags = fields.and_then(|mut fields| fields.nth(6)?.parse::<u32>().ok());
    let is_exiting = flags.is_none_or(|flags| flags & EXITING != 0);
    let status = read("status");
    let pending = status.lines().filter_map(|line| {
        let (name, mask) = line.split_once(':')?;
        let mask = matches!(name, "SigPnd" | "ShdPnd").then_some(mask.trim())?;
        u64::from_str_radix(mask, 16).ok()
    });
    let killed = 1 << (libc::SIGKILL - 1);
    is_exiting || pending.fold(0, |all, mask| all | mask) & killed != 0
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
    let task = task_with_files(pid)?;
    let fds = fs::read_dir(task.join("fd")).ok()?.flatten();
    let numbers: Vec<OsString> = fds
        .filter(|fd| leads_to(&fd.path(), path, file))
        .map(|fd| fd.file_name())
        .collect();
    let is_locked = |number: &OsString| {
        let info = task.join("fdinfo").join(number);
        fs::read_to_string(info).is_ok_and(|text| text.lines().any(|line| line.starts_with("lock:")))
    };
    (!numbers.is_empty()).then(|| numbers.iter().any(is_locked))
}

/// Returns the folder of a thread that still has the files of its process: in one that was killed, other threads may have
/// ended before it. `None` if no thread has files.
fn task_with_files(pid: u32) -> Option<PathBuf> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let has_files = |task: &PathBuf| fs::read_dir(task.join("fd")).is_ok_and(|fds| fds.count() > 0);
    tasks.map(|task| task.path()).find(has_files)
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
    fn a_killed_process_is_ending() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let before = is_ending(child.id());
        child.kill().unwrap();
        // It cannot handle this signal, so it is ending from now on. It stays visible until it is waited for.
        let after = is_ending(child.id());
        child.wait().unwrap();
        assert_eq!((before, after), (false, true));
        assert!(is_ending(child.id()), "it is gone");
    }

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
