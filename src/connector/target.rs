//! The addresses of a server.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use super::start_error::StartError;
use crate::nbd::Server;

/// The addresses at which a server can be reached. A host's name is looked up only once, because a confined process
/// cannot look names up.
#[derive(Clone, Debug)]
pub(super) enum Target {
    Unix(PathBuf),
    Inet(Vec<SocketAddr>),
}

impl Target {
    pub(super) fn of(server: &Server) -> Result<Self, StartError> {
        let (host, port) = match server {
            Server::Unix(path) => return Ok(Self::Unix(path.clone())),
            Server::Inet(host, port) => (host.as_str(), *port),
        };
        let found = (host, port).to_socket_addrs().map(Iterator::collect);
        found.map(Self::Inet).map_err(|source| StartError::Resolve {
            server: server.clone(),
            source,
        })
    }
}
