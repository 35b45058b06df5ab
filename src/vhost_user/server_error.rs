//! Why there is no socket to serve.

use std::io;
use std::path::PathBuf;

/// The reason why a socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The named process listens on the socket.
    #[error("socket {0} is in use by {1}")]
    InUse(PathBuf, String),
    /// This process listens on the socket itself.
    #[error("this process serves socket {0} already")]
    Ours(PathBuf),
    /// The socket is stale, but another process may be about to replace it.
    #[error(
        "socket {0} is stale, and another process keeps its directory locked: end that process, or remove the socket"
    )]
    Locked(PathBuf),
    /// The file at the path is not a socket.
    #[error("{0} exists and is not a socket")]
    NotASocket(PathBuf),
    /// The directory is missing, or no file may be created in it.
    #[error("cannot listen on socket {path}: {why}")]
    Directory {
        /// The socket's path.
        path: PathBuf,
        /// The fault of the directory.
        why: String,
    },
    /// The socket's file cannot get its owner, group or mode.
    #[error("cannot set owner, group and mode of socket {path}")]
    Grant {
        /// The socket's path.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The socket cannot be created.
    #[error("cannot listen on socket {path}")]
    Bind {
        /// The socket's path.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The file descriptor is not a usable Unix stream socket.
    #[error("file descriptor {fd} {reason}")]
    BadFd {
        /// Number of the file descriptor.
        fd: i32,
        /// The fault of the file descriptor.
        reason: &'static str,
    },
    /// The eventfd that stops the server cannot be created.
    #[error("cannot create an eventfd")]
    EventFd(#[source] io::Error),
}
