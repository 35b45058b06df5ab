//! The metrics thread and its sockets, as the main thread sees them. `page` has the metrics.

mod disks;
mod family;
mod iothreads;
mod page;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::SystemTime;

use super::roster::Roster;
use super::settings::MetricsAddress;
use crate::account::{self, Account, find_group};
use crate::memory::keeps_files;
use crate::metrics::{Listener, Server, Stop};
use crate::sandbox::{Sandbox, ThreadKind};
use crate::vhost_user::path::{SocketAccess, SocketFile};
use crate::vhost_user::server::ServerError;

/// The reason why there is no socket for metrics.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetricsError {
    /// The Unix socket cannot be made.
    #[error(transparent)]
    Unix(#[from] ServerError),
    /// The group of the Unix socket does not exist.
    #[error(transparent)]
    Group(#[from] account::Error),
    /// Nobody can listen at the address.
    #[error("cannot listen on {address}")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// The error of the operating system.
        source: io::Error,
    },
}

/// The sockets for metrics, before they are served.
#[derive(Debug, Default)]
pub(super) struct MetricsSockets {
    listeners: Vec<Listener>,
    files: Vec<SocketFile>,
    /// The addresses of the listeners.
    addresses: Vec<String>,
}

impl MetricsSockets {
    /// Makes the sockets. Unix sockets belong to the user that the process switches to.
    ///
    /// # Errors
    /// A socket cannot be made.
    pub(super) fn bind(
        addresses: &[MetricsAddress],
        account: Option<&Account>,
    ) -> Result<Self, MetricsError> {
        let mut sockets = Self::default();
        for address in addresses {
            sockets.addresses.push(address.to_string());
            match address {
                MetricsAddress::Unix { path, mode, group } => {
                    let group = group.as_deref().map(find_group).transpose()?;
                    let default = SocketAccess::default();
                    let access = SocketAccess {
                        mode: mode.unwrap_or(default.mode),
                        owner: account.map(Account::uid),
                        group: group.or(account.map(Account::gid)),
                    };
                    let (listener, file) = SocketFile::listen(path, &access)?;
                    sockets.listeners.push(Listener::Unix(listener));
                    sockets.files.push(file);
                }
                MetricsAddress::Tcp(address) => sockets.listeners.push(Listener::Tcp(listen(*address)?)),
            }
        }
        Ok(sockets)
    }

    /// Adds the socket of a predecessor.
    pub(super) fn add(&mut self, address: String, socket: OwnedFd) {
        match address.strip_prefix("unix:") {
            None => self.listeners.push(Listener::Tcp(socket.into())),
            Some(path) => {
                let listener = UnixListener::from(socket);
                self.files.extend(SocketFile::passed(Path::new(path), &listener));
                self.listeners.push(Listener::Unix(listener));
            }
        }
        self.addresses.push(address);
    }

    /// Returns the paths of the Unix sockets.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(SocketFile::path)
    }

    /// Serves the sockets on a thread of its own.
    ///
    /// # Errors
    /// No file descriptor is left, or the thread cannot be created.
    pub(super) fn serve(self, sandbox: &Sandbox, roster: &Roster) -> io::Result<Option<MetricsThread>> {
        if self.listeners.is_empty() {
            return Ok(None);
        }
        let duplicate = |listener: &Listener| listener.as_fd().try_clone_to_owned();
        let kept = match keeps_files() {
            true => self.listeners.iter().map(duplicate).collect::<io::Result<_>>()?,
            false => Vec::new(),
        };
        let (roster, start) = (roster.clone(), SystemTime::now());
        let server = Server::new(self.listeners, move |format| page::page(&roster, start, format))?;
        let stop = server.stopper();
        let thread = sandbox.spawn(ThreadKind::Metrics, "metrics".to_owned(), move || server.run())?;
        Ok(Some(MetricsThread {
            stop,
            thread,
            _files: self.files,
            sockets: self.addresses.into_iter().zip(kept).collect(),
        }))
    }
}

/// Listens on a TCP port, and logs which one the kernel has chosen for port 0.
fn listen(address: SocketAddr) -> Result<TcpListener, MetricsError> {
    let failed = |source| MetricsError::Tcp { address, source };
    let listener = TcpListener::bind(address).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tracing::info!(%address, "metrics can be read");
    Ok(listener)
}

/// The running metrics thread.
#[derive(Debug)]
pub(super) struct MetricsThread {
    stop: Stop,
    thread: JoinHandle<()>,
    /// The files of the Unix sockets, which are removed when the thread has ended.
    _files: Vec<SocketFile>,
    /// Duplicates of the sockets with their addresses, if another process may take over.
    sockets: Vec<(String, OwnedFd)>,
}

impl MetricsThread {
    /// Returns the sockets with their addresses, if another process may take over.
    pub(super) fn sockets(&self) -> impl Iterator<Item = &(String, OwnedFd)> {
        self.sockets.iter()
    }

    /// Ends the thread.
    pub(super) fn end(self) {
        self.stop.stop();
        if self.thread.join().is_err() {
            tracing::error!("the metrics thread has panicked");
        }
    }
}
