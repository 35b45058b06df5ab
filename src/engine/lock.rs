//! The lock of a disk's image. Any thread but an IOThread.

use std::os::fd::BorrowedFd;

use super::rbd::RbdLock;
use crate::storage::ImageLock;

/// A lock, held until this is dropped.
#[derive(Debug)]
pub enum NodeLock {
    /// The lock of a file or a block device.
    File(ImageLock),
    /// The lock of an image in a Ceph cluster.
    Rbd(RbdLock),
}

impl NodeLock {
    /// Returns the open files that have the lock, in order. `None` where there are no locks.
    pub(crate) fn files(&self) -> Vec<Option<BorrowedFd<'_>>> {
        match self {
            Self::File(lock) => lock.files(),
            Self::Rbd(_) => Vec::new(),
        }
    }

    /// Holds `below` as well, the lock of the disk that becomes the backing file of this one. That disk is only read from
    /// now on.
    pub(crate) fn put_above(&mut self, below: Self) {
        if let (Self::File(own), Self::File(below)) = (self, below) {
            if let Err(error) = below.only_read() {
                tracing::warn!(%error, "the backing file of a snapshot stays locked for writing");
            }
            own.add(below);
        }
    }

    /// Keeps the image locked until the process ends: it may lack writes, and nobody should use it as if it were
    /// complete.
    pub(crate) fn keep(self) {
        match self {
            Self::File(lock) => lock.keep(),
            Self::Rbd(lock) => std::mem::forget(lock),
        }
    }
}
