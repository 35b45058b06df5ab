//! The server: a socket, and who may connect to it. `serve` has what it does with frontends.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketType, sockopt};

use super::channel::{BackendChannel, Resizer};
use super::inheritance::Inheritance;
use super::path::{SocketAccess, SocketFile};
pub use super::server_error::ServerError;
use super::stopper::Stopper;
use crate::blk::device::BlkDevice;

#[derive(Debug)]
pub(super) enum Socket {
    Listening(UnixListener),
    /// A connection to a single frontend.
    Connected(UnixStream),
    /// The disk is being removed.
    Closed,
}

/// A socket that frontends connect to.
#[derive(Debug)]
pub struct Server {
    /// Dropped before the socket is closed: other daemons do not replace a socket while it listens, so the removed file
    /// is our own.
    pub(super) path: Option<SocketFile>,
    pub(super) socket: Socket,
    /// The path or the number of the file descriptor, for log lines.
    name: String,
    pub(super) stop: Stopper,
    pub(super) channel: BackendChannel,
    /// The session of a predecessor, which comes first.
    pub(super) inheritance: Option<Inheritance>,
}

impl Server {
    /// Listens at `path`, with the rights in `access`. A stale socket is replaced.
    ///
    /// # Errors
    /// Another process listens at `path`, another file is there, or the path cannot be bound.
    pub fn bind(path: &Path, access: &SocketAccess) -> Result<Self, ServerError> {
        let (listener, file) = SocketFile::listen(path, access)?;
        Self::on(listener, file)
    }

    /// Serves a socket that listens already, and removes its file at the end.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub(crate) fn on(listener: UnixListener, file: SocketFile) -> Result<Self, ServerError> {
        Ok(Self {
            name: file.path().display().to_string(),
            path: Some(file),
            socket: Socket::Listening(listener),
            stop: Stopper::new().map_err(ServerError::EventFd)?,
            channel: BackendChannel::default(),
            inheritance: None,
        })
    }

    /// As [`from_fd`](Self::from_fd), for a socket that a predecessor has passed together with its name in messages.
    ///
    /// # Errors
    /// The descriptor is not such a socket.
    pub(crate) fn passed(fd: OwnedFd, name: String, path: Option<&Path>) -> Result<Self, ServerError> {
        let mut server = Self::from_fd(fd)?;
        server.name = name;
        if let (Some(path), Socket::Listening(listener)) = (path, &server.socket) {
            server.path = SocketFile::passed(path, listener);
        }
        Ok(server)
    }

    /// Returns the path of the socket's file, if this process or its helper removes it.
    pub(crate) fn file(&self) -> Option<&Path> {
        self.path.as_ref().map(SocketFile::path)
    }

    /// Returns a duplicate of the socket.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub(crate) fn duplicate(&self) -> io::Result<OwnedFd> {
        match &self.socket {
            Socket::Listening(listener) => listener.as_fd().try_clone_to_owned(),
            Socket::Connected(stream) => stream.as_fd().try_clone_to_owned(),
            Socket::Closed => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Serves an inherited socket that either listens or is connected to a frontend.
    ///
    /// # Errors
    /// The descriptor is not such a socket.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, ServerError> {
        let number = fd.as_raw_fd();
        let bad = |reason| ServerError::BadFd { fd: number, reason };
        let no_socket = |_| bad("is not a socket, but a file, a pipe or something else");
        if sockopt::socket_domain(&fd).map_err(no_socket)? != AddressFamily::UNIX
            || sockopt::socket_type(&fd).map_err(no_socket)? != SocketType::STREAM
        {
            return Err(bad("is a socket, but not a Unix stream socket"));
        }
        let mut name = format!("fd {number}");
        let socket = if sockopt::socket_acceptconn(&fd).map_err(no_socket)? {
            let listener = UnixListener::from(fd);
            let address = listener.local_addr().ok();
            if let Some(path) = address.as_ref().and_then(SocketAddr::as_pathname) {
                name = path.display().to_string();
            }
            Socket::Listening(listener)
        } else {
            let stream = UnixStream::from(fd);
            let unconnected = |_| bad("is a socket that neither listens nor is connected to a frontend");
            stream.peer_addr().map_err(unconnected)?;
            if has_hung_up(&stream) {
                return Err(bad("is a connection whose frontend has left already"));
            }
            stream.set_nonblocking(false).map_err(unconnected)?;
            Socket::Connected(stream)
        };
        Ok(Self {
            path: None,
            socket,
            name,
            stop: Stopper::new().map_err(ServerError::EventFd)?,
            channel: BackendChannel::default(),
            inheritance: None,
        })
    }

    pub(super) fn channel(&self) -> &BackendChannel {
        &self.channel
    }

    /// Returns the socket's path, or the number of the inherited file descriptor.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the socket's file, if this process removes it with the server.
    pub fn path(&self) -> Option<&Path> {
        let own = self.path.as_ref().filter(|file| file.is_own());
        own.map(SocketFile::path)
    }

    /// Makes the server go on with the session of a predecessor first.
    pub(crate) fn inherit(&mut self, inheritance: Inheritance) {
        self.inheritance = Some(inheritance);
    }

    /// Returns a handle that ends [`Server::run`] from another thread.
    pub fn stopper(&self) -> Stopper {
        self.stop.clone()
    }

    /// Returns a handle that applies a changed size of the disk that is to be served.
    pub fn resizer(&self, device: &BlkDevice) -> Resizer {
        let (state, control) = (Arc::clone(device.state()), Arc::clone(device.control()));
        Resizer::new(state, control, self.channel.clone())
    }
}

/// Returns whether the other end of a connection is closed.
fn has_hung_up(stream: &UnixStream) -> bool {
    let mut polled = [PollFd::new(stream, PollFlags::empty())];
    let no_wait = Timespec::default();
    poll(&mut polled, Some(&no_wait)).is_ok() && polled[0].revents().contains(PollFlags::HUP)
}
