//! Counts the frontends of a disk.

use crate::counter::Counter;

/// The frontends of a disk. The control thread writes, any thread reads.
#[derive(Debug, Default)]
pub struct Frontends {
    /// 1 while a frontend is connected.
    pub connected: Counter,
    /// Connections since the disk was made.
    pub connections: Counter,
}
