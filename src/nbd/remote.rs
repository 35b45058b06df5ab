//! The other end of a connection: a server, an export of it, and whether the connection is encrypted.

use std::path::PathBuf;

use super::address::Server;

/// The credentials for encrypted connections (x509).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The directory with `ca-cert.pem`, and for servers that ask for it `client-cert.pem` and `client-key.pem`.
    pub dir: PathBuf,
    /// Accept only servers whose certificate one of the authorities has signed.
    pub verify_peer: bool,
    /// The name that the server's certificate must have.
    pub hostname: Option<String>,
}

/// An export of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// The server.
    pub server: Server,
    /// The name of the export.
    pub export: String,
    /// Encrypt connections with these credentials.
    pub tls: Option<Tls>,
}
