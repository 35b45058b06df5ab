//! Why the daemon does not start, or ends with a failure.

use std::io;
use std::path::PathBuf;

use super::disks::AddError;
use crate::account;
use crate::aio;
use crate::blk::device::{CreateError, TakeError};
use crate::engine;
use crate::kernel::KernelError;
use crate::sandbox;
use crate::storage::{self, LockError};
use crate::vhost_user::inherited::InheritedError;
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
    /// The socket that was handed over cannot be used.
    #[error(transparent)]
    Handed(#[from] HandedError),
    /// The image cannot be opened.
    #[error(transparent)]
    Image(#[from] storage::Error),
    /// The image looks like one of another format, inside of which a guest would find itself.
    #[error("{} looks like a {format} image, and images are served as they are, byte by byte", path.display())]
    Format {
        /// The image.
        path: PathBuf,
        /// The name of the format.
        format: &'static str,
    },
    /// The image cannot be used now.
    #[error(transparent)]
    Take(#[from] TakeError),
    /// The disk cannot get the engine.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// The user to become does not exist, or the process may not become this user.
    #[error(transparent)]
    User(account::Error),
    /// The group of the socket does not exist.
    #[error(transparent)]
    Group(account::Error),
    /// There is no socket to listen on.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// QMP clients cannot be served.
    #[error("cannot serve QMP clients")]
    Monitor(#[source] io::Error),
    /// The service manager cannot be reached.
    #[error("cannot connect to the service manager (NOTIFY_SOCKET)")]
    Readiness(#[source] io::Error),
    /// The process cannot be confined.
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    /// An IOThread cannot be started.
    #[error(transparent)]
    IoThread(#[from] aio::Error),
    /// An IOThread has ended.
    #[error(transparent)]
    Gone(#[from] aio::Gone),
    /// An IOThread cannot run on these CPUs.
    #[error(
        "IOThread {iothread} cannot run on CPUs {cpus:?} (do they exist, are they online, may this process use them?)"
    )]
    Pin {
        /// The number of the IOThread.
        iothread: u16,
        /// The CPUs.
        cpus: Vec<u16>,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The disk cannot be made.
    #[error(transparent)]
    Device(#[from] CreateError),
    /// The disk cannot be served.
    #[error(transparent)]
    Add(#[from] AddError),
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

/// Why a socket that was handed over cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HandedError {
    /// The descriptor that was given by number cannot be taken.
    #[error(transparent)]
    Number(SocketError),
    /// The socket of the service manager cannot be taken.
    #[error("LISTEN_FDS")]
    Manager(#[source] SocketError),
    /// The service manager has set the access rights of its socket.
    #[error(
        "the socket was handed over (LISTEN_FDS), and its unit says who may connect (SocketMode=, SocketGroup=)"
    )]
    Access,
    /// Nobody has handed a socket over.
    #[error("no socket was handed over{0}")]
    None(
        /// What the environment says, for the message.
        String,
    ),
}

/// Why a descriptor is not a socket to serve.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub enum SocketError {
    /// There is no such descriptor.
    Inherited(#[from] InheritedError),
    /// It is of the wrong kind.
    Server(#[from] ServerError),
}

impl From<LockError> for Error {
    fn from(error: LockError) -> Self {
        Self::Take(error.into())
    }
}
