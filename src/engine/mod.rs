//! The execution of I/O: the device passes down a batch of requests, and each comes back to its completer, now or
//! later.
//!
//! A [`BlockNode`] is a disk: its properties and its lock. A [`DiskView`] is what an export shows of it. A [`Channel`] leads to a disk from one IOThread.
//! [`Channel::submit`] is the only way to do I/O. Requests that need not wait are executed during the call. The others
//! complete later, on the same IOThread, inside a defer scope. The [`Resources`] of an IOThread are shared by its
//! disks. Other threads request a flush or a new look at the size through a [`NodeControl`]. A [`Plan`] determines how
//! a disk's requests are executed.

mod channel;
mod control;
mod detect_zeroes;
mod error;
mod fault;
mod file;
mod handing_over;
mod job;
mod link_channel;
mod lock;
mod max_batch;
mod nbd;
mod node;
mod null;
mod overlay;
mod pace;
mod plan;
mod qcow2;
mod rbd;
mod remote_disk;
mod resources;
mod size_listener;
mod throttle;
mod view;

pub use channel::Channel;
pub use control::{ControlChannel, NodeControl};
pub use detect_zeroes::DetectZeroes;
pub use error::Error;
pub use fault::{FaultRule, Faults};
pub use file::pins::PinnedMemory;
pub use lock::NodeLock;
pub use nbd::{NbdDisk, NbdOptions, OpenError as NbdOpenError};
pub use node::BlockNode;
pub use null::NullDisk;
pub use overlay::OverlayError;
pub use plan::{Choice, Plan};
pub use qcow2::{BackingOption, CacheOptions, OpenError as Qcow2OpenError, Qcow2Disk, Qcow2Options};
pub use rbd::RbdDisk;
pub use remote_disk::{Look, RemoteOptions};
pub use resources::Resources;
pub use size_listener::SizeListener;
pub use view::{Activity, DiskView};
