//! What all threads share of a disk.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::failures::Failures;
use super::request::{ID_LEN, Rules};
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
    /// Requests that the disk could not execute.
    pub failures: Failures,
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
            failures: Failures::default(),
            log: LogLimit::new(),
        }
    }

    /// Returns the bytes on the disk: whole logical blocks.
    pub fn capacity(&self) -> u64 {
        let size = self.node.size();
        size - size % u64::from(self.limits.logical_block_size)
    }

    /// Returns the rules for requests that are taken now.
    pub(super) fn rules(&self, write_through: bool) -> Rules<'_> {
        let limits = &self.limits;
        Rules {
            capacity: self.capacity(),
            block_size: limits.logical_block_size,
            read_only: limits.read_only,
            discard: limits.discard_granularity > 0,
            write_zeroes: limits.write_zeroes,
            write_through,
            serial: &self.serial,
        }
    }
}
