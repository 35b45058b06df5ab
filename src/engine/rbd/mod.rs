//! Disks in Ceph clusters.
//!
//! Each IOThread has one link to a disk, which all queues of the disk share there. It starts operations of librbd, which
//! do not wait. A thread of librbd puts each result into the link's mailbox, and schedules a bottom half of the IOThread
//! if the mailbox was empty. librbd never has the guest's memory: it copies writes before it returns, and reads go through
//! a buffer. So a request can be given up while its operation still waits for the cluster.

mod active;
mod disk;
mod link;
mod lock;
mod look;
mod mailbox;
mod owner;
mod spare;

use crate::engine::link_channel::LinkChannel;
pub use disk::RbdDisk;
pub(super) use link::Link;
pub(super) use lock::RbdLock;

/// The channel of a queue to a disk in a cluster.
pub(super) type RbdChannel = LinkChannel<Link>;
