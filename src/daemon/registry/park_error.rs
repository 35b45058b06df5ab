//! The reasons why a registry stays in its process.

use std::io;
use std::path::PathBuf;

use super::error::OperationError;
use crate::storage;
use crate::succession::MissingFile;
use crate::vhost_user::server::ServerError;

/// The reason why a registry cannot be handed over or taken over.
#[derive(Debug, thiserror::Error)]
pub(in crate::daemon) enum ParkError {
    #[error("node '{name}' has driver '{driver}', which cannot be handed over so far")]
    Driver { name: String, driver: &'static str },
    #[error("an operation on node '{0}' has not ended: try again")]
    Busy(String),
    #[error("export '{0}' is being added or removed: try again")]
    Export(String),
    #[error("an operation waits for a file or a socket: try again")]
    Waiting,
    #[error("export '{id}' uses IOThread '{iothread}', which was deleted")]
    IoThread { id: String, iothread: String },
    #[error("a flush of {} has failed: restart the process when that is mended", .0.display())]
    Flush(PathBuf),
    #[error("cannot use {}, which the old process has passed", path.display())]
    File { path: PathBuf, source: storage::Error },
    #[error(transparent)]
    Missing(#[from] MissingFile),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{what}")]
    Operation {
        what: String,
        source: Box<OperationError>,
    },
    #[error("export '{id}'")]
    Server { id: String, source: ServerError },
}
