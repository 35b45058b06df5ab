//! The reasons why a handshake fails.

use std::io;

use super::address::EXPORT_MAX;

/// The reason why a handshake failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
#[non_exhaustive]
pub enum HandshakeError {
    #[error("the server does not answer")]
    Timeout,
    #[error("the server closed the connection during the handshake")]
    Closed,
    #[error("the connection failed: {0}")]
    Io(#[source] io::Error),
    #[error("it is not an NBD server")]
    NotNbd,
    #[error("it is an old server (oldstyle handshake), which is not supported")]
    OldStyle,
    #[error("it demands TLS: give tls-creds=ID, the id of a tls-creds-x509 object")]
    Tls,
    #[error("it has no TLS: leave tls-creds out, or let the server offer TLS")]
    NoTls,
    #[error("it refuses TLS: {0}")]
    TlsRefused(&'static str),
    #[error("the server has no export '{0}'")]
    NoExport(String),
    #[error(
        "the server has closed the connection: it has no export '{0}', or does not serve it to this client"
    )]
    ExportClosed(String),
    #[error("the server refuses export '{export}': {why}")]
    Refused { export: String, why: String },
    #[error("the name of the export is longer than {EXPORT_MAX} bytes")]
    LongName,
    #[error("the server violates the protocol: {0}")]
    Protocol(&'static str),
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Timeout,
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::WriteZero => Self::Closed,
            _ => Self::Io(error),
        }
    }
}
