//! A vhost-user block backend: a guest's virtio-blk disk, served from a process of its own.
//!
//! ```text
//!  guest kick -> split ring -> chain -> request -> engine -> completion -> used ring -> one call eventfd write
//!              `------------- virtqueue, blk ------------'   engine,        `-------- blk, defer --------'
//!                                                            storage
//! ```
//!
//! - [`vhost_user`]: the control thread of a disk; sockets, messages, sessions.
//! - [`blk`]: the virtio-blk device; [`virtqueue`]: split rings; [`memory`]: the guest's memory.
//! - [`engine`]: how I/O is executed; [`storage`]: where the bytes are; [`io`]: the requests that both pass around.
//! - [`iothread`]: an IOThread with all that its disks share.
//! - [`aio`]: the event loop of an IOThread; [`thread_pool`]: blocking work beside it; [`defer`]: one notification per
//!   batch.
//! - [`sandbox`]: what is left of the process's rights while it serves; [`account`]: the user it runs as.
//! - [`holders`]: the processes that have a file open, for messages.
//!
//! Lower layers know nothing of higher ones: `aio` and the pool know no virtio, storage knows no sectors, the ring
//! knows no block device. ARCHITECTURE.md says why it is shaped like this.

pub mod account;
mod advice;
pub mod aio;
pub mod blk;
pub mod config;
pub mod defer;
pub mod engine;
mod eventfd;
mod guard;
pub mod holders;
pub mod io;
pub mod iothread;
pub mod kernel;
pub mod limits;
pub mod log_limit;
pub mod mapping;
pub mod memory;
pub mod panics;
pub mod readiness;
pub mod sandbox;
#[cfg(test)]
#[path = "../tests/common/skip.rs"]
mod skip;
mod status;
pub mod storage;
mod sync;
pub mod thread_pool;
pub mod vhost_user;
pub mod virtqueue;
