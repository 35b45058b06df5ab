//! Facts about a disk for threads that show them.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::counter::Counter;
use crate::engine::Plan;

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
    engine: Mutex<Option<Plan>>,
}

impl DiskFacts {
    /// Returns how I/O is executed.
    pub fn engine(&self) -> Option<Plan> {
        *self.lock()
    }

    pub(super) fn set_engine(&self, plan: Plan) {
        *self.lock() = Some(plan);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Plan>> {
        // Consistent even after a panic: each change is one assignment.
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
