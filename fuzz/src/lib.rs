//! What the fuzz targets share: a guest's memory, chains built in it, and a slow, obvious reading of the specification.
//!
//! [`spec`] is written from VIRTIO 1.3 alone and shares no code with the daemon; a difference between the two is a
//! finding. So is every byte that changes where nobody asked for a change.

pub mod chains;
pub mod frontend;
pub mod guest;
pub mod holdings;
pub mod queue;
pub mod spec;
