//! The calls from the registry to its users.

use std::sync::{Arc, OnceLock};

use super::error::OperationError;
use crate::blk::notice;

/// An event that management clients want to know about.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// An export has been removed.
    ExportDeleted {
        /// The id of the export.
        id: String,
    },
}

/// Called with each [`Notice`] on the main thread, before the operation that caused it is answered.
pub type OnNotice = Box<dyn FnMut(&Notice) + Send>;

/// Called with an export's id, the name of its node, and an event of its disk.
pub type DiskListener = Box<dyn Fn(&str, &str, notice::Notice) + Send + Sync>;

/// Set later, because disks may be served before there is a listener.
pub(super) type OnDiskNotice = Arc<OnceLock<DiskListener>>;

/// Called when an operation that takes time has ended.
pub type Done = Box<dyn FnOnce(Result<(), OperationError>) + Send>;
