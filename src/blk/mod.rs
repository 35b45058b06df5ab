//! The virtio-blk device (VIRTIO 1.3, 5.2).
//!
//! The control thread holds a [`device`]. A [`handle`] lets other threads change the node below it. Each [`queue`] serves one virtqueue on its IOThread. [`request`] turns
//! descriptor chains into I/O, and [`config`] has the configuration space. [`error_policy`] decides about requests that
//! fail, and [`failures`] reports them. [`stats`] and [`latency`] count, and [`position`] shows where rings stand.

pub mod config;
pub mod device;
pub mod error_policy;
mod facts;
pub mod failures;
pub mod handle;
mod image_lock;
pub mod latency;
pub mod notice;
mod parked_stats;
pub mod position;
pub mod queue;
pub mod request;
mod ring_state;
mod shard;
mod state;
pub mod stats;
mod trace;
pub mod write_cache;
