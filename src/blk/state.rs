//! The state of a disk that all threads share.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::failures::Failures;
use super::notice::Notices;
use super::request::{ID_LEN, Rules};
use crate::engine::BlockNode;
use crate::log_limit::LogLimit;
use crate::storage::Limits;

/// The state of a disk that the control thread and the IOThreads share.
#[derive(Debug)]
pub struct DeviceState {
    /// The disk's name in messages: the image's path.
    pub name: String,
    /// The disk.
    pub node: Arc<BlockNode>,
    /// The limits that the disk announces.
    pub limits: Limits,
    /// The answer to GET_ID, padded with NULs.
    pub serial: [u8; ID_LEN],
    /// Notifications are coalesced.
    pub batch_notifications: AtomicBool,
    /// The driver has put a request into one of the rings.
    pub had_requests: AtomicBool,
    /// A frontend of this disk has filled one of its eventfds.
    pub fills_eventfds: Arc<AtomicBool>,
    /// Requests that the disk could not execute.
    pub failures: Failures,
    /// Limits the log lines about this disk.
    pub log: LogLimit,
}

impl DeviceState {
    /// Creates the state of a disk that offers all that its node can do.
    pub fn new(name: impl Into<String>, node: Arc<BlockNode>) -> Self {
        Self {
            name: name.into(),
            limits: *node.limits(),
            node,
            serial: [0; ID_LEN],
            batch_notifications: AtomicBool::new(true),
            had_requests: AtomicBool::new(false),
            fills_eventfds: Arc::default(),
            failures: Failures::default(),
            log: LogLimit::new(),
        }
    }

    /// Returns where the disk's threads tell what happens.
    pub fn notices(&self) -> &Notices {
        &self.failures.notices
    }

    /// Returns the size of the disk in bytes, rounded down to whole logical blocks.
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
