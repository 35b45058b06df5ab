//! Disks on NBD servers.
//!
//! Each IOThread has one connection to a disk's server, which all queues of the disk share. Requests are written to it in
//! batches, with one system call for all that fit, and the answers are read straight into the guest's memory, or
//! through a buffer where one call brings several of them. No other thread takes part.
//!
//! When the connection breaks, the [`connector`](crate::connector) makes a new one. Requests wait for it as long as
//! `reconnect-delay` says, those that were sent and not answered as well: they are sent again. From then on requests fail
//! at once, until the server is back.

mod commands;
mod disk;
mod incoming;
mod link;
mod look;
mod lost;
mod outgoing;
mod reconnect;
mod slab;
mod stream;

use crate::engine::link_channel::LinkChannel;
pub use disk::{NbdDisk, NbdOptions, OpenError};
pub(super) use link::Link;

/// The channel of a queue to a disk on a server.
pub(super) type NbdChannel = LinkChannel<Link>;
