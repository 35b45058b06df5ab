//! The messages between the daemon and its helper.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A request of the daemon. Each but the last is answered, in order.
#[derive(Debug, Deserialize, Serialize)]
pub(super) enum Request {
    /// Open an image.
    Open {
        directory: usize,
        rest: PathBuf,
        file: FileRequest,
    },
    /// Make a socket that listens. `number` identifies it in [`Request::Remove`].
    Listen {
        directory: usize,
        rest: PathBuf,
        number: u64,
        socket: SocketRequest,
    },
    /// Remove the file of a socket, if it is still the same.
    Remove { number: u64 },
    /// Remove the files of all sockets that are left, and end.
    End,
}

/// How an image is opened.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct FileRequest {
    /// Open the image for writing as well.
    pub(crate) writable: bool,
    /// Open it for reading only if it cannot be opened for writing.
    pub(crate) or_read_only: bool,
    /// Bypass the page cache (O_DIRECT).
    pub(crate) direct: bool,
}

/// How a socket is made.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct SocketRequest {
    /// The address to bind the socket to, which tools show.
    pub(crate) path: PathBuf,
    /// The permission bits of its file.
    pub(crate) mode: libc::mode_t,
    /// The group of its file; that of the process by default.
    pub(crate) group: Option<libc::gid_t>,
}

/// The helper's answer, with its descriptors.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The image, and if it is writable through the page cache, the same file open for O_DIRECT, if that is possible.
    File(OwnedFd, Option<OwnedFd>),
    /// The socket, which listens.
    Socket(OwnedFd),
    /// A socket's file was removed, as its owner has asked.
    Removed,
    Refused(Refusal),
}

/// The reason why a request is refused.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) enum Refusal {
    /// A symbolic link or `..` leads out of the directory.
    LeadsOut,
    /// The file is neither a regular file nor a block device.
    Kind,
    /// A system call has failed with this error.
    Os(i32),
    /// A sentence.
    Told(String),
}

/// The part of an answer that is not descriptors.
#[derive(Debug, Deserialize, Serialize)]
pub(super) enum Outcome {
    /// The helper is confined and waits for requests, or cannot.
    Ready(Result<(), String>),
    File,
    Socket,
    /// The socket with this number has no file any more.
    Removed(u64),
    Refused(Refusal),
}
