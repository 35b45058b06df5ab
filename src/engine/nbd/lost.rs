//! The end of a connection.

use std::io;

use crate::nbd::ProtocolError;

/// The reason why a connection cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    #[error("the server has closed it")]
    Closed,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Protocol(#[from] ProtocolError),
    #[error("memory of the guest has gone away in the middle of a write")]
    Memory,
    #[error("the export has grown, and the connection is older")]
    Outgrown,
    #[error("the server does not answer, and the disk has to stop")]
    Stopped,
}

impl Lost {
    /// Returns whether this end closed a connection whose server had done nothing wrong.
    pub(super) fn is_ours(&self) -> bool {
        matches!(self, Self::Memory | Self::Outgrown | Self::Stopped)
    }
}
