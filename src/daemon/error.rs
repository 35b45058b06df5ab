//! Errors that keep the daemon from starting, or make it end with a failure.

use std::io;
use std::path::PathBuf;

use super::metrics::MetricsError;
use super::registry::{OperationError, SocketError};
use super::settings::Verb;
use super::succession::TakeOverError;
use crate::account;
use crate::connector;
use crate::kernel::KernelError;
use crate::opener::StartError;
use crate::sandbox;
use crate::vhost_user::server::ServerError;

/// The error that keeps the daemon from starting, or makes it end with a failure. The command line's module knows which
/// option to change.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nothing can connect to an NBD server.
    #[error(transparent)]
    Connector(#[from] connector::StartError),
    /// The kernel is not suitable.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Signals cannot be handled.
    #[error("cannot handle signals")]
    Signals(#[source] io::Error),
    /// The socket with the given descriptor number cannot be used.
    #[error(transparent)]
    Descriptor(SocketError),
    /// The socket from the service manager cannot be used.
    #[error("LISTEN_FDS")]
    Activation(#[source] SocketError),
    /// The user to switch to does not exist, or the process may not switch to it.
    #[error(transparent)]
    User(account::Error),
    /// An object, a node or an export cannot be made.
    #[error("{source}")]
    Operation {
        /// The kind of the operation.
        verb: Verb,
        /// The number of the operation in the settings, counted from 0.
        number: usize,
        /// The reason.
        source: Box<OperationError>,
    },
    /// The socket for QMP clients cannot be made.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// QMP clients cannot be served.
    #[error("cannot serve QMP clients")]
    Monitor(#[source] io::Error),
    /// The watchdog's thread cannot be created.
    #[error("cannot create the watchdog's thread")]
    Watchdog(#[source] io::Error),
    /// A socket for metrics cannot be made.
    #[error(transparent)]
    MetricsSocket(#[from] MetricsError),
    /// Metrics cannot be served.
    #[error("cannot serve metrics")]
    Metrics(#[source] io::Error),
    /// Other processes cannot ask to take over.
    #[error("cannot wait for processes that take over")]
    HandOver(#[source] io::Error),
    /// The process cannot go to the background.
    #[error("cannot go to the background")]
    Background(#[source] io::Error),
    /// The pid file cannot be written.
    #[error("cannot write the process's number to {}", path.display())]
    PidFile {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The service manager cannot be reached.
    #[error("cannot connect to the service manager (NOTIFY_SOCKET)")]
    ServiceManager(#[source] io::Error),
    /// The names in some directories cannot be left to disks that are added later.
    #[error(transparent)]
    Opener(#[from] StartError),
    /// The process cannot be confined.
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    /// Nothing is taken over.
    #[error(transparent)]
    TakeOver(#[from] TakeOverError),
    /// The disks cannot be served.
    #[error(transparent)]
    Serve(OperationError),
    /// Writes have been lost, so the process must not end as if nothing had happened.
    #[error(
        "a flush of {0} has failed, so writes may be lost: mend what is below it, run 'sync {0}' until it reports no \
         error, then check the guest's file systems",
        path.display()
    )]
    LostWrites {
        /// The image.
        path: PathBuf,
    },
    /// Requests are still in flight at the end. They are lost unless the frontend tracks them and connects to another
    /// daemon.
    #[error("requests were left in flight on {}", disks.join(", "))]
    Abandoned {
        /// The names of the disks.
        disks: Vec<String>,
    },
}
