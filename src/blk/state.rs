//! What all threads share of a disk.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::request::ID_LEN;
use super::trouble::Trouble;
use crate::engine::BlockNode;
use crate::log_limit::LogLimit;
use crate::storage::Limits;

/// What the control thread and the IOThreads share of a disk.
#[derive(Debug)]
pub struct DeviceState {
    /// For messages: the image's path.
    pub name: String,
    /// The disk.
    pub node: Arc<BlockNode>,
    /// What the disk offers.
    pub limits: Limits,
    /// Answer to GET_ID, padded with NULs.
    pub serial: [u8; ID_LEN],
    /// Notifications are coalesced.
    pub batch_notifications: AtomicBool,
    /// The frontend's driver has put a request into a ring.
    pub had_requests: AtomicBool,
    /// What becomes of requests that the disk cannot execute.
    pub trouble: Trouble,
    /// Which lines about this disk are logged.
    pub log: LogLimit,
}

impl DeviceState {
    /// Makes the state of a disk that serves a node as it is.
    pub fn new(name: impl Into<String>, node: Arc<BlockNode>) -> Self {
        Self {
            name: name.into(),
            limits: *node.limits(),
            node,
            serial: [0; ID_LEN],
            batch_notifications: AtomicBool::new(true),
            had_requests: AtomicBool::new(false),
            trouble: Trouble::default(),
            log: LogLimit::new(),
        }
    }

    /// Returns the bytes on the disk: whole logical blocks.
    pub fn capacity(&self) -> u64 {
        let size = self.node.size();
        size - size % u64::from(self.limits.logical_block_size)
    }
}
