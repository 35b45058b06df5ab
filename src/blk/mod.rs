//! The virtio-blk device (VIRTIO 1.3, 5.2).
//!
//! [`config`] says what the device announces, [`request`] turns descriptor chains into I/O, [`queue`] serves one
//! virtqueue on its IOThread, [`device`] is what the control thread holds, [`latency`] and [`stats`] count, [`trouble`] says what becomes of requests that
//! the disk cannot execute.

pub mod config;
pub mod device;
mod image_lock;
pub mod latency;
pub mod queue;
pub mod request;
mod state;
pub mod stats;
pub mod trouble;
pub mod write_cache;
