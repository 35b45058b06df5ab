//! Disks that are put above others while these are in use. Any thread but an IOThread.

use std::io;
use std::sync::Arc;

use super::lock::NodeLock;
use super::node::BlockNode;
use super::qcow2::OpenError;
use crate::storage::LockError;

/// The reason why an image cannot be put above another disk.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
#[non_exhaustive]
pub enum OverlayError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("cannot prepare the overlay for writes")]
    Look(#[source] io::Error),
}

impl BlockNode {
    /// Makes a disk of the same image with `below` as its backing file. Only one of the two may be used.
    ///
    /// # Errors
    /// The image cannot be read, or cannot be above `below`.
    ///
    /// # Panics
    /// The format has no backing files.
    pub fn above(&self, below: &Arc<Self>) -> Result<Self, OpenError> {
        match self {
            Self::Qcow2(disk) => disk.above(below).map(Self::from),
            _ => panic!("the caller has checked the format"),
        }
    }

    /// Returns the number of backing files below each other.
    pub fn backing_depth(&self) -> usize {
        match self {
            Self::Qcow2(disk) => disk.backing_depth(),
            _ => 0,
        }
    }

    /// Locks a disk that was made with [`above`](Self::above), and prepares it for writes. The lock of its backing file
    /// stays as it is.
    ///
    /// # Errors
    /// The image is in use, or cannot be read or written.
    pub fn lock_above(&self) -> Result<Option<NodeLock>, OverlayError> {
        let Self::Qcow2(disk) = self else { return Ok(None) };
        let lock = disk.lock_own_files()?;
        disk.look_at_own_files().map_err(OverlayError::Look)?;
        Ok(lock.map(NodeLock::File))
    }

    /// Says that the disk is only read from now on, because it has become a backing file.
    pub fn stop_writing(&self) {
        if let Self::Qcow2(disk) = self {
            disk.stop_writing();
        }
    }
}
