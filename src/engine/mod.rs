//! How I/O is executed: a batch of requests is handed down, and each comes back to its completer, now or later.
//!
//! A [`BlockNode`] is a disk: its properties and its lock. A [`Channel`] is the way to it on one IOThread, and
//! [`Channel::submit`] the one way in: what takes no waiting is executed during the call, the rest comes back later, on
//! the same IOThread, inside a defer scope. What the disks of an IOThread share is in its [`Resources`]. Other threads ask for a flush or a look at the size through a
//! [`NodeControl`]. A [`Plan`] says how a disk's requests are executed.

mod channel;
mod control;
mod error;
mod fault;
mod file;
mod job;
mod node;
mod null;
mod plan;
mod resources;
mod throttle;

pub use channel::Channel;
pub use control::NodeControl;
pub use error::Error;
pub use fault::{FaultRule, Faults};
pub use node::BlockNode;
pub use null::NullDisk;
pub use plan::{Choice, Plan};
pub use resources::Resources;
