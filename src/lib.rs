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
//! Lower layers know nothing of higher layers: `aio` and the pool know no virtio, storage knows no sectors, and the
//! ring knows no block device. ARCHITECTURE.md explains this design.

pub mod account;
mod advice;
mod affinity;
pub mod aio;
pub mod blk;
pub mod ceph;
pub mod cli;
pub mod connector;
pub mod counter;
pub mod daemon;
pub mod defer;
pub mod engine;
mod error_chain;
mod eventfd;
mod guard;
pub mod holders;
pub mod io;
pub mod iothread;
pub mod kernel;
pub mod limits;
pub mod log_format;
pub mod log_limit;
pub mod memory;
pub mod metrics;
pub mod nbd;
pub mod opener;
mod packet;
pub mod panics;
pub mod qcow2;
pub mod qmp;
pub mod sandbox;
pub mod service_manager;
pub mod storage;
mod succession;
mod sync;
mod sys;
pub mod thread_pool;
pub mod throttle;
pub mod vhost_user;
pub mod virtqueue;
pub mod watchdog;
