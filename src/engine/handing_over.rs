//! Block nodes on their way from one process to the next. Any thread but an IOThread.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::lock::NodeLock;
use super::node::BlockNode;
use crate::storage::{ImageLock, LockError, LockMode, RawFile};

impl BlockNode {
    /// Uses the locks that another process has passed: the files that have them, or `None` where there are no locks. A
    /// disk without an image needs no lock.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn inherit_lock(
        &self,
        mode: LockMode,
        mut locks: Vec<Option<OwnedFd>>,
    ) -> Result<Option<NodeLock>, LockError> {
        match self {
            Self::File(file) if file.locks() => {
                let lock = locks.pop().flatten();
                Ok(Some(NodeLock::File(ImageLock::inherit(file, mode, lock)?)))
            }
            Self::Qcow2(disk) => Ok(disk.inherit_locks(mode, locks)?.map(NodeLock::File)),
            _ => Ok(None),
        }
    }

    /// Tells other machines that this process leaves the image, which another one has taken over. This process ends now.
    pub(crate) fn close_at_end(&self) {
        if let Self::Rbd(disk) = self {
            disk.close_at_end();
        }
    }

    /// Returns whether another process can have the lock at the same time, because it belongs to open files.
    pub(crate) fn passes_lock(&self) -> bool {
        !matches!(self, Self::Rbd(_))
    }

    /// Returns whether [`IoOp::Settle`](crate::io::IoOp::Settle) does something. It may have to flush then.
    pub(crate) fn needs_settling(&self) -> bool {
        match self {
            Self::Qcow2(_) | Self::Rbd(_) => !self.limits().read_only,
            Self::Nbd(disk) => !self.limits().read_only && !disk.is_multi_conn(),
            Self::File(_) | Self::NullCo(_) | Self::NullAio(..) => false,
        }
    }

    /// Returns the files of an image in a format that were opened because the image names them: its data file if
    /// `data_file` says so, and its backing files if `backing` does.
    pub(crate) fn named_files(&self, data_file: bool, backing: bool) -> Vec<&Arc<RawFile>> {
        match self {
            Self::Qcow2(disk) => disk.named_files(data_file, backing),
            _ => Vec::new(),
        }
    }
}
