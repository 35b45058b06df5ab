//! Locks that have outlived their process: the kernel has them, but no process has the file open.

use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::{major, minor, stat};

/// The inode of the first PID namespace (`PROC_PID_INIT_INO`). All processes of the machine are in it.
const FIRST_NAMESPACE: &str = "pid:[4026531836]";

/// Returns whether the kernel of this machine has a lock on the file, and no process has an open file with it.
///
/// False if this process may not see all processes, or if the lock is one of another host.
pub(super) fn nobody_has(path: &Path) -> bool {
    let Some(file) = name_in_lists(path) else {
        return false;
    };
    let listed = fs::read_to_string("/proc/locks").is_ok_and(|locks| has(&locks, &file));
    listed && sees_all() && any_process_has(&file).is_ok_and(|found| !found)
}

/// Returns a file's device and inode as lists of locks have them.
fn name_in_lists(path: &Path) -> Option<String> {
    let file = stat(path).ok()?;
    let (major, minor) = (major(file.st_dev), minor(file.st_dev));
    Some(format!("{major:02x}:{minor:02x}:{}", file.st_ino))
}

/// Returns whether a list of locks has one that belongs to an open file description and is on `file`.
fn has(locks: &str, file: &str) -> bool {
    let mut locks = locks.lines().map(str::split_whitespace);
    locks.any(|mut words| words.any(|word| word == "OFDLCK") && words.any(|word| word == file))
}

/// Returns whether this process can see all processes.
fn sees_all() -> bool {
    fs::read_link("/proc/self/ns/pid").is_ok_and(|namespace| namespace.as_os_str() == FIRST_NAMESPACE)
}

/// Returns whether a process has an open file with a lock on `file`, whatever its name there. The error means that this
/// process may not look into another one.
fn any_process_has(file: &str) -> io::Result<bool> {
    for process in fs::read_dir("/proc")? {
        let process = process?;
        let name = process.file_name();
        let is_process = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
        // Nobody may look into the first process, which uses no images.
        if name == "1" || !name.to_str().is_some_and(is_process) {
            continue;
        }
        if unless_gone(process_has(&process.path(), file))? == Some(true) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn process_has(process: &Path, file: &str) -> io::Result<bool> {
    // Threads of a process that was killed do not end at the same time.
    for task in fs::read_dir(process.join("task"))? {
        let Some(files) = unless_gone(fs::read_dir(task?.path().join("fdinfo")))? else {
            continue;
        };
        let mut seen = false;
        for open in files {
            seen = true;
            let text = unless_gone(fs::read_to_string(open?.path()))?;
            if text.is_some_and(|text| has(&text, file)) {
                return Ok(true);
            }
        }
        if seen {
            // All threads have the same files.
            break;
        }
    }
    Ok(false)
}

/// Returns `None` if an error means that the process or its file is gone.
fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        result => result.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_of_open_files_are_found_in_lists() {
        let locks =
            "1: POSIX  ADVISORY  READ 712 fe:00:7 100 100\n2: OFDLCK ADVISORY  READ -1 fe:00:8 101 101\n";
        let of_fd = "pos:\t0\nflags:\t0100002\nlock:\t1: OFDLCK  ADVISORY  READ -1 fe:00:8 101 101\n";
        assert!(has(locks, "fe:00:8") && has(of_fd, "fe:00:8"));
        assert!(!has(locks, "fe:00:7") && !has(locks, "fe:00:80") && !has(of_fd, "fe:00:7"));
    }
}
