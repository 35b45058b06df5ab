//! Why the daemon does not start, or ends with a failure.

use std::io;
use std::path::PathBuf;

use super::registry::{OperationError, SocketError};
use super::settings::Verb;
use crate::account;
use crate::kernel::KernelError;
use crate::sandbox;
use crate::vhost_user::server::ServerError;

/// Why the daemon does not start, or ends with a failure. The command line's module knows which option mends what.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel is not suitable.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Signals cannot be handled.
    #[error("cannot handle signals")]
    Signals(#[source] io::Error),
    /// The socket that was handed over with a number cannot be used.
    #[error(transparent)]
    Descriptor(SocketError),
    /// The socket of the service manager cannot be used.
    #[error("LISTEN_FDS")]
    Activation(#[source] SocketError),
    /// The user to become does not exist, or the process may not become this user.
    #[error(transparent)]
    User(account::Error),
    /// An object, a node or an export cannot be made.
    #[error("{source}")]
    Operation {
        /// What was asked for.
        verb: Verb,
        /// Why it is refused.
        source: Box<OperationError>,
    },
    /// The socket for QMP clients cannot be made.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// QMP clients cannot be served.
    #[error("cannot serve QMP clients")]
    Monitor(#[source] io::Error),
    /// The process cannot go to the background.
    #[error("cannot go to the background")]
    Background(#[source] io::Error),
    /// The file with the process's number cannot be written.
    #[error("cannot write the process's number to {}", path.display())]
    PidFile {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The service manager cannot be reached.
    #[error("cannot connect to the service manager (NOTIFY_SOCKET)")]
    Readiness(#[source] io::Error),
    /// The process cannot be confined.
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    /// The disks cannot be served.
    #[error(transparent)]
    Serve(OperationError),
    /// The process does not end as if nothing had happened after it has lost writes.
    #[error(
        "a flush of {0} has failed, so writes may be lost: mend what is below it, run 'sync {0}' until it reports no \
         error, then check the guest's file systems",
        path.display()
    )]
    LostWrites {
        /// The image.
        path: PathBuf,
    },
    /// The process ends although requests are in flight. They are lost unless the frontend keeps track of them and finds
    /// a successor.
    #[error("requests were left in flight on {}", disks.join(", "))]
    Abandoned {
        /// The names of the disks.
        disks: Vec<String>,
    },
}
