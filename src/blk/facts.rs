//! Facts about a disk for threads that show them.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::counter::Counter;
use crate::engine::{BlockNode, Plan};

/// Facts about a disk that do not depend on its queues. They keep nothing of the disk alive. Any thread may read them,
/// and no IOThread uses them.
#[derive(Debug, Default)]
pub struct DiskFacts {
    /// 1 while a frontend is connected. The control thread writes.
    pub connected: Counter,
    /// Connections since the disk was made. The control thread writes.
    pub connections: Counter,
    /// The process of the last frontend, or 0 if the kernel does not tell. The control thread writes.
    pub frontend_pid: Counter,
    /// How I/O is executed, and the image. Both change with the node below.
    route: Mutex<Option<(Plan, String)>>,
}

impl DiskFacts {
    /// Returns how I/O is executed.
    pub fn engine(&self) -> Option<Plan> {
        self.lock().as_ref().map(|(plan, _)| *plan)
    }

    /// Returns the name of the image.
    pub fn image(&self) -> Option<String> {
        self.lock().as_ref().map(|(_, image)| image.clone())
    }

    pub(super) fn set_node(&self, plan: Plan, node: &BlockNode) {
        *self.lock() = Some((plan, node.path().display().to_string()));
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Plan, String)>> {
        // Consistent even after a panic: each change is one assignment.
        self.route.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
