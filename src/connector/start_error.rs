//! The reasons why nothing can connect to a server.

use std::io;

use crate::nbd::Server;

/// Nothing can connect to a server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The name of the host means nothing.
    #[error("cannot find the address of NBD server {server}")]
    Resolve {
        /// The server.
        server: Server,
        /// The error of the resolver.
        source: io::Error,
    },
    /// The process or thread cannot be created, or has ended at once.
    #[error("cannot start the process that connects to NBD server {server}")]
    Process {
        /// The server.
        server: Server,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The process cannot be confined.
    #[error("the process that connects to NBD server {server}: {why}")]
    Setup {
        /// The server.
        server: Server,
        /// The reason.
        why: String,
    },
}
