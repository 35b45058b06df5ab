//! Tells a service manager that the disk is served: systemd's `Type=notify`, `NOTIFY_SOCKET`.
//!
//! The connection is made early, because a sandboxed process makes none. Main thread.

use std::env;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// A connection to the service manager, if there is one.
#[derive(Debug)]
pub struct Readiness(Option<UnixDatagram>);

impl Readiness {
    /// Connects to the socket that the environment names, if it names one.
    ///
    /// # Errors
    /// It cannot be connected to.
    pub fn connect() -> io::Result<Self> {
        let Some(name) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Ok(Self(None));
        };
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        Ok(Self(Some(socket)))
    }

    /// Says that frontends are served from now on. A manager that has gone is none of our business.
    pub fn announce(self) {
        if let Some(Err(error)) = self.0.map(|socket| socket.send(b"READY=1")) {
            tracing::warn!(%error, "the service manager cannot be told that the disk is served (NOTIFY_SOCKET)");
        }
    }
}
