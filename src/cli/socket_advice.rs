//! Advice about sockets and addresses that cannot be used.

use std::io::ErrorKind;

use crate::daemon::MetricsError;
use crate::vhost_user::server::ServerError;

/// Explains what to do about a socket. `other` is the advice to choose another one.
pub(super) fn server_advice(error: &ServerError, other: &str) -> Option<String> {
    Some(match error {
        ServerError::InUse(..) => format!("end that first, or {other}"),
        ServerError::Ours(_) => other.to_owned(),
        ServerError::NotASocket(_) => format!("remove it, or {other}"),
        ServerError::Directory { .. } => format!("correct that, or {other}"),
        ServerError::Grant { .. } => {
            "only a member of a group may give it a file, and only root may give a file to another user"
                .to_owned()
        }
        _ => return None,
    })
}

/// Explains what to do about an address that cannot be used.
pub(super) fn metrics_advice(error: &MetricsError) -> Option<String> {
    let told = match error {
        MetricsError::Unix(error) => return server_advice(error, "choose another --metrics"),
        MetricsError::Tcp { source, .. } => match source.kind() {
            ErrorKind::AddrInUse => "end the process that listens there, or choose another port",
            ErrorKind::AddrNotAvailable => "choose an address of this machine, or 127.0.0.1",
            ErrorKind::PermissionDenied => "choose a port from 1024 on, or start as root",
            _ => return None,
        },
        MetricsError::Group(_) => return None,
    };
    Some(told.to_owned())
}
