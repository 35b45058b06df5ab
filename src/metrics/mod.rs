//! Serves a page of metrics over HTTP, to whoever may connect to its sockets.
//!
//! Runs on a thread of its own ([`Server::run`]), which waits in one place for all connections. Clients are not
//! trusted: each has a few seconds and a few kilobytes for its request, and gets one answer. A flood of connections
//! costs a bounded amount of memory and of CPU time. The thread takes no lock that serving a disk needs.
//!
//! The module knows nothing of disks: a callback makes the page.

mod connection;
mod pace;
mod page;
mod request;
mod server;

pub use request::Format;
pub use server::{Listener, Server, Stop};
