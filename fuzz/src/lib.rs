//! The parts that the fuzz targets share: a guest's memory, chains in it, and a simple model of the specification.
//!
//! [`spec`] is written from VIRTIO 1.3 alone and shares no code with the daemon. A difference between the two is a
//! finding. A byte that changes without a request for the change is a finding as well.

pub mod chains;
pub mod frontend;
pub mod guest;
pub mod holdings;
pub mod queue;
pub mod spec;
