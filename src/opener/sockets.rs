//! Makes and removes sockets. Helper only.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, OFlags, unlinkat};

use super::files::find;
use super::message::{Refusal, SocketRequest};
use crate::vhost_user::path::{Inode, ListenError, SocketAccess, SocketPlace, inode, listen_at};

/// The file of a socket that the helper has made.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) number: u64,
    directory: OwnedFd,
    name: PathBuf,
    inode: Inode,
}

/// Makes a socket that listens.
pub(super) fn listen(
    directory: BorrowedFd<'_>,
    rest: &Path,
    number: u64,
    wanted: &SocketRequest,
) -> Result<(OwnedFd, Made), Refusal> {
    // The address is a path, which only Landlock keeps in the directory.
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if !rest.components().all(plain) {
        return Err(Refusal::LeadsOut);
    }
    let name = rest.file_name().map(PathBuf::from).ok_or(Refusal::Kind)?;
    let parent = match rest.parent() {
        Some(parent) if parent.as_os_str() != OsStr::new("") => parent,
        _ => Path::new("."),
    };
    let directory = find(directory, parent, OFlags::DIRECTORY)?;
    let place = SocketPlace {
        directory: Some(directory.as_fd()),
        name: &name,
        path: &wanted.path,
    };
    let access = SocketAccess {
        mode: wanted.mode,
        owner: None,
        group: wanted.group,
    };
    let (listener, inode) = listen_at(&place, &access).map_err(told)?;
    let made = Made {
        number,
        directory,
        name,
        inode,
    };
    Ok((listener.into(), made))
}

fn told(error: ListenError) -> Refusal {
    match error {
        ListenError::Ours => Refusal::Told("this process serves it already".to_owned()),
        ListenError::InUse(Some(pid)) => Refusal::Told(format!("it is in use by process {pid}")),
        ListenError::InUse(None) => Refusal::Told("it is in use by another process".to_owned()),
        ListenError::Locked => {
            Refusal::Told("it is stale, and another process keeps its directory locked".to_owned())
        }
        ListenError::NotASocket => Refusal::Told("a file that is not a socket is there".to_owned()),
        ListenError::Elsewhere => Refusal::LeadsOut,
        ListenError::Grant(error) => Refusal::Told(format!("cannot set its owner, group and mode: {error}")),
        ListenError::Bind(error) => match error.raw_os_error() {
            Some(errno) => Refusal::Os(errno),
            None => Refusal::Told(error.to_string()),
        },
    }
}

impl Made {
    /// Removes the file, if it is still the same.
    pub(super) fn remove(&self) {
        if inode(Some(self.directory.as_fd()), &self.name).is_ok_and(|now| now == self.inode) {
            // Nobody waits for the outcome.
            let _ = unlinkat(&self.directory, &self.name, AtFlags::empty());
        }
    }
}
