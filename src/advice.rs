//! Advice about paths: finds out what keeps an image from being opened, or a socket from being made.
//!
//! Runs at the start only, once an attempt has failed. Any thread.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::process::geteuid;

use crate::account;

/// Symbolic links that are followed; the kernel follows no more than 40.
const LINKS_MAX: usize = 40;

/// Says why there is nothing at `path`, and the command that makes an image there, if there is one.
pub(crate) fn missing(path: &Path, command: Option<String>) -> String {
    if let Ok(target) = fs::read_link(path) {
        return format!(
            "it is a symbolic link to {}, which does not exist",
            target.display()
        );
    }
    match no_directory(path) {
        Some(why) => why,
        // A regular file made there would be in memory.
        None if path.starts_with("/dev") => "there is no such device".to_owned(),
        None => match command {
            Some(command) => format!("No such file or directory; '{command}' makes one"),
            None => "No such file or directory".to_owned(),
        },
    }
}

/// Says why the directory of `path` is none, if it is none.
pub(crate) fn no_directory(path: &Path) -> Option<String> {
    let directory = directory_of(path);
    let shown = directory.display();
    match fs::metadata(&directory) {
        Ok(found) if found.is_dir() => None,
        Ok(_) => Some(format!("{shown} is not a directory")),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => no_directory(&directory),
        Err(_) if fs::symlink_metadata(&directory).is_ok() => Some(format!("{shown} leads to no directory")),
        Err(_) => Some(format!("there is no directory {shown}")),
    }
}

/// Says what keeps this process from making a file at `path`.
pub(crate) fn denied_directory(path: &Path) -> String {
    let directory = directory_of(path);
    if is_allowed(&directory, Access::EXEC_OK) && !is_allowed(&directory, Access::WRITE_OK) {
        return format!("{} may not make files in {}", us(), belongs(&directory));
    }
    denied(path)
}

/// Says what keeps this process from opening `path`.
pub(crate) fn denied(path: &Path) -> String {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        let ancestors: Vec<&Path> = path.ancestors().skip(1).collect();
        let closed = ancestors
            .into_iter()
            .rev()
            .map(|directory| {
                if directory == Path::new("") {
                    Path::new(".")
                } else {
                    directory
                }
            })
            .find(|directory| !is_allowed(directory, Access::EXEC_OK));
        if let Some(directory) = closed {
            return format!("{} may not enter directory {}", us(), belongs(directory));
        }
        match fs::read_link(&path) {
            Ok(target) => path = directory_of(&path).join(target),
            Err(_) => break,
        }
    }
    for (mode, doing) in [(Access::READ_OK, "read"), (Access::WRITE_OK, "write")] {
        if !is_allowed(&path, mode) {
            return format!("{} may not {doing} {}", us(), belongs(&path));
        }
    }
    format!(
        "the permissions of {} allow it, so something else forbids it: SELinux, AppArmor, a container, a network file \
         system",
        belongs(&path)
    )
}

/// Says what keeps this process from writing to `path`, which it may read.
pub(crate) fn not_writable(path: &Path, error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EACCES) => denied(path),
        Some(libc::EROFS) => "the file system or the device is read-only".to_owned(),
        _ => "it may be immutable or append-only (lsattr shows that)".to_owned(),
    }
}

/// The user of this process.
fn us() -> String {
    let user = geteuid().as_raw();
    account::user_name(user).map_or_else(|| format!("user {user}"), |name| format!("user {name}"))
}

/// A path with the owner, group and mode of what is there.
fn belongs(path: &Path) -> String {
    let Ok(metadata) = fs::metadata(path) else {
        return path.display().to_string();
    };
    let (user, group, mode) = (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777);
    let user = account::user_name(user).unwrap_or_else(|| user.to_string());
    let group = account::group_name(group).unwrap_or_else(|| group.to_string());
    format!(
        "{} (owner {user}, group {group}, mode {mode:04o})",
        path.display()
    )
}

/// The directory that a path is in.
pub(crate) fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn is_allowed(path: &Path, access: Access) -> bool {
    accessat(CWD, path, access, AtFlags::EACCESS).is_ok()
}
