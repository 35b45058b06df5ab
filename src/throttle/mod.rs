//! Throttle groups: limits on requests and bytes per second that several disks share.
//!
//! A [`Group`] owns leaky buckets and decides which waiting request goes next, across the disks of all IOThreads. Each
//! disk in a group is a [`Member`], and the one that has used least of the limits goes next. The requests themselves stay
//! on their IOThread, in the disk's channel (`engine::throttle`), which asks the group before it passes a request on.
//! Names and rules are those of QEMU's throttle groups.

mod bucket;
mod fair;
mod group;
mod limits;
mod queue;
mod ticket;
mod waits;

pub(crate) use group::Turn;
pub use group::{Group, Lane, Member};
pub use limits::{LimitsError, ThrottleLimits};
pub use ticket::Direction;
pub use waits::Waits;
