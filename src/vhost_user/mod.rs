//! The vhost-user protocol: sockets, connections, messages.
//!
//! A [server](server::Server) owns the socket and serves one frontend at a time. [`session`] turns the messages of one
//! frontend into commands for the device's queues. Both run on the disk's control thread.

mod channel;
mod error;
mod handler;
mod inbox;
mod inheritance;
pub mod inherited;
pub mod path;
mod region_reply;
mod serve;
pub mod server;
mod server_error;
pub mod session;
mod skip_drain;
mod stopper;
mod succession;
mod vring;

pub use channel::{BackendChannel, Resizer};
pub use error::SessionError;
pub(crate) use inheritance::{Heir, inheritance};
pub(crate) use session::parked::ParkedDisk;
pub(crate) use stopper::Parking;
pub use stopper::Stopper;
