//! A vhost-user block backend: serves a guest's virtio-blk disk from a separate process.
//!
//! ```text
//!  guest kick -> split ring -> chain -> request -> engine -> completion -> used ring -> one call eventfd write
//!              `------------- virtqueue, blk ------------'   engine,        `-------- blk, defer --------'
//!                                                            storage
//! ```
//!
//! - [`vhost_user`]: the control thread of a disk; sockets, messages, sessions.
//! - [`blk`]: the virtio-blk device; [`virtqueue`]: split rings; [`memory`]: the guest's memory.
//! - [`engine`]: executes I/O; [`storage`]: holds the bytes; [`io`]: the requests that both pass around.
//! - [`qcow2`]: the format of qcow2 images, as plain data.
//! - [`throttle`]: limits that several disks share.
//! - [`iothread`]: an IOThread with everything that its disks share.
//! - [`aio`]: the event loop of an IOThread; [`thread_pool`]: runs blocking jobs for it; [`defer`]: one notification
//!   per batch.
//! - [`daemon`]: the start, the registry of disks, signals, the end; [`cli`]: the command line.
//! - [`qmp`]: clients that manage the process; commands, events.
//! - [`opener`]: a helper process that opens files beneath directories that are left to it.
//! - [`nbd`]: the protocol of NBD servers; [`connector`]: helper processes that connect to them.
//! - [`ceph`]: librbd, loaded at run time, and its threads.
//! - [`metrics`]: serves a page of metrics over HTTP.
//! - [`sandbox`]: limits the process's rights while it serves; [`account`]: the user the process runs as.
//! - [`watchdog`]: frees IOThreads that wait for a frontend's eventfd.
//! - [`log_format`]: the lines on stderr; [`service_manager`]: messages to systemd.
//! - [`holders`]: the processes that have a file open, for messages.
//!
//! The loom models (`scripts/test`) are built without the modules that they do not need, in a fifth of the time.
//!
//! Lower layers know nothing of higher layers: `aio` and the pool know no virtio, storage knows no sectors, and the
//! ring knows no block device. ARCHITECTURE.md explains this design.

#[cfg(not(loom))]
pub mod account;
#[cfg(not(loom))]
mod advice;
mod affinity;
pub mod aio;
#[cfg(not(loom))]
pub mod blk;
#[cfg(not(loom))]
pub mod ceph;
#[cfg(not(loom))]
pub mod cli;
#[cfg(not(loom))]
pub mod connector;
pub mod counter;
#[cfg(not(loom))]
pub mod daemon;
pub mod defer;
#[cfg(not(loom))]
pub mod engine;
#[cfg(not(loom))]
mod error_chain;
#[cfg(not(loom))]
mod eventfd;
mod guard;
#[cfg(not(loom))]
pub mod holders;
mod interrupt;
pub mod io;
#[cfg(not(loom))]
pub mod iothread;
#[cfg(not(loom))]
pub mod kernel;
mod lifeline;
#[cfg(not(loom))]
pub mod limits;
#[cfg(not(loom))]
pub mod log_format;
#[cfg(not(loom))]
pub mod log_limit;
pub mod memory;
#[cfg(not(loom))]
pub mod metrics;
#[cfg(not(loom))]
pub mod nbd;
#[cfg(not(loom))]
pub mod opener;
#[cfg(not(loom))]
mod packet;
pub mod panics;
#[cfg(not(loom))]
pub mod qcow2;
#[cfg(not(loom))]
pub mod qmp;
#[cfg(not(loom))]
pub mod sandbox;
#[cfg(not(loom))]
pub mod service_manager;
#[cfg(not(loom))]
pub mod storage;
#[cfg(not(loom))]
mod strict_json;
mod succession;
mod sync;
mod sys;
pub mod thread_pool;
#[cfg(not(loom))]
pub mod throttle;
#[cfg(not(loom))]
pub mod vhost_user;
pub mod virtqueue;
#[cfg(not(loom))]
pub mod watchdog;
