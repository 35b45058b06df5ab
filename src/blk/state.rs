//! What all threads share of a disk.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::request::ID_LEN;
use super::trouble::Trouble;
use crate::engine::BlockNode;
use crate::log_limit::LogLimit;

/// What the control thread and the IOThreads share of a disk.
#[derive(Debug)]
pub struct DeviceState {
    /// For messages: the image's path.
    pub name: String,
    /// The disk.
    pub node: Arc<BlockNode>,
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
