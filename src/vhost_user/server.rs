//! The server: accepts frontends on the socket and serves one at a time, until it is stopped.
//!
//! Runs on the disk's control thread. A misbehaving frontend can only end its own connection.

use std::io::{self, ErrorKind};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketType, sockopt};
use vhost::vhost_user::{BackendReqHandler, Error as VhostError};

use super::channel::{BackendChannel, Resizer};
use super::error::SessionError;
use super::error::chain;
use super::handler::{Answers, Handler};
use super::inbox::{Inbox, InboxError, Next};
use super::inheritance::Inheritance;
use super::path::{SocketAccess, SocketFile};
pub use super::server_error::ServerError;
use super::session::Session;
use super::stopper::Stopper;
use crate::blk::device::{BlkDevice, DeviceState};
use crate::blk::notice::Notice;
use crate::limits::{is_out_of_files, out_of_files};
use crate::sys;

/// Pause before retrying after `accept` failed (out of file descriptors or memory).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
enum Socket {
    Listening(UnixListener),
    /// A connection to a single frontend.
    Connected(UnixStream),
}

/// A socket that frontends connect to.
#[derive(Debug)]
pub struct Server {
    /// Dropped before the socket is closed: other daemons do not replace a socket while it listens, so the removed file
    /// is our own.
    path: Option<SocketFile>,
    socket: Socket,
    /// The path or the number of the file descriptor, for log lines.
    name: String,
    stop: Stopper,
    channel: BackendChannel,
    /// The session of a predecessor, which comes first.
    inheritance: Option<Inheritance>,
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

    /// Serves frontends until stopped. On a connected socket, it also returns when that frontend leaves.
    ///
    /// No request is in flight when this returns.
    pub fn run(mut self, device: &mut BlkDevice) {
        if let Some(inheritance) = self.inheritance.take()
            && !self.serve_inherited(inheritance, device)
        {
            return;
        }
        match &self.socket {
            Socket::Connected(stream) => match stream.try_clone() {
                Ok(stream) => self.serve(stream, device),
                Err(error) => {
                    let disk = &device.state().name;
                    tracing::error!(disk, %error, "cannot serve the connected socket");
                }
            },
            Socket::Listening(listener) => {
                while let Some(stream) = self.accept(listener, device) {
                    self.serve(stream, device);
                }
            }
        }
    }

    /// Waits for the next frontend. Returns `None` when stopped.
    fn accept(&self, listener: &UnixListener, device: &BlkDevice) -> Option<UnixStream> {
        let DeviceState { name: disk, log, .. } = &**device.state();
        let (mut failing, mut told) = (false, false);
        loop {
            if self.stop.wait(Some(listener.as_fd()), None) {
                match self.stop.take_park() {
                    Some(park) => park.without_session(device),
                    None => return None,
                }
                continue;
            }
            match listener.accept() {
                Ok((stream, _)) => {
                    if told {
                        tracing::info!(disk, "accepting connections again");
                    }
                    return Some(stream);
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::Interrupted | ErrorKind::ConnectionAborted
                    ) => {}
                Err(error) => {
                    if !failing && let Some(suppressed) = log.pass("not accepted", "") {
                        let hint = files_hint(is_out_of_files(&error));
                        tracing::warn!(disk, %error, suppressed, "cannot accept a connection: retrying{hint}");
                        told = true;
                    }
                    failing = true;
                    self.stop.wait(None, Some(ACCEPT_PAUSE));
                }
            }
        }
    }

    fn serve(&self, stream: UnixStream, device: &mut BlkDevice) {
        let state = Arc::clone(device.state());
        let DeviceState { name: disk, log, .. } = &*state;
        let socket = match stream.try_clone() {
            Ok(socket) => socket,
            Err(error) => {
                let hint = files_hint(is_out_of_files(&error));
                if let Some(suppressed) = log.pass("connection refused", "") {
                    tracing::warn!(disk, %error, suppressed, "connection refused{hint}");
                }
                return;
            }
        };
        let (pid, uid) = count_frontend(&state, &stream);
        state.notices().tell(|| Notice::Connected { pid, uid });
        if let Some(suppressed) = log.pass_normal("connected", "") {
            tracing::info!(disk, pid, uid, suppressed, "frontend connected");
        }
        let handler = Handler {
            session: Session::new(device, self.channel.clone()),
            disk: Arc::clone(&state),
            unanswered: false,
            answers: Answers::default(),
            offered: None,
            socket: &socket,
            replied: false,
            protocol_features: None,
        };
        let handler = Arc::new(Mutex::new(handler));
        let requests = BackendReqHandler::from_stream(stream, Arc::clone(&handler));
        self.serve_to_end(&socket, requests, handler, &state);
    }

    /// Serves the frontend until it leaves, and ends the session.
    pub(super) fn serve_to_end<'a>(
        &self,
        socket: &UnixStream,
        mut requests: BackendReqHandler<Mutex<Handler<'a>>>,
        handler: Arc<Mutex<Handler<'a>>>,
        state: &Arc<DeviceState>,
    ) {
        let reason = self.serve_requests(socket, &mut requests, &handler, state).err();
        // Checked while the connection's descriptors are still open: the kernel may have dropped a descriptor that came
        // with a message because none was free.
        let hint = files_hint(reason.is_some() && out_of_files());
        if self.stop.is_end() {
            lock(&handler).session.device().end();
        }
        // Before the connection is closed: a frontend that sees it end regards the used rings as final.
        lock(&handler).session.finish();
        drop(requests);
        drop(handler);
        log_end(state, reason.as_ref(), hint);
    }

    /// Handles messages until the frontend leaves or the server is stopped.
    fn serve_requests(
        &self,
        socket: &UnixStream,
        requests: &mut BackendReqHandler<Mutex<Handler<'_>>>,
        handler: &Mutex<Handler<'_>>,
        disk: &DeviceState,
    ) -> Result<(), ConnectionError> {
        let listener = match &self.socket {
            Socket::Listening(listener) => Some(listener.as_fd()),
            Socket::Connected(_) => None,
        };
        let mut inbox = Inbox::new(socket.as_fd(), &self.stop, listener)?;
        loop {
            let preview = match inbox.next()? {
                Next::Message(preview) => preview,
                Next::Another => {
                    log_waiting(disk, socket);
                    continue;
                }
                Next::End => match self.stop.take_park() {
                    None => return Ok(()),
                    Some(park) => {
                        park.session(socket, &mut lock(handler))?;
                        inbox.go_on();
                        continue;
                    }
                },
            };
            if preview.is_skip_drain() {
                lock(handler).answer_skip_drain()?;
                continue;
            }
            let asks = preview.asks();
            let answered = preview.is_answered();
            lock(handler).offered = preview.into_backend_socket();
            let refusal = match requests.handle_request() {
                Ok(()) => continue,
                Err(VhostError::Disconnected) => return Ok(()),
                Err(VhostError::ReqHandlerError(_)) if mem::take(&mut lock(handler).replied) => continue,
                // Logged already.
                Err(VhostError::ReqHandlerError(error)) if !lock(handler).must_end() => error.to_string(),
                Err(error @ VhostError::InvalidMessage) if answered => {
                    if let Some(suppressed) = disk.log.pass("invalid", &error) {
                        tracing::warn!(disk = disk.name, %error, suppressed, "vhost-user message refused");
                    }
                    error.to_string()
                }
                Err(error) => return Err(error.into()),
            };
            // A frontend that gets no answer would wait forever, and so would its guest. Ending the connection tells it.
            if !(asks && lock(handler).answers.are_given()) {
                return Err(ConnectionError::Untold(refusal));
            }
        }
    }
}

/// Logs that a frontend connected while another one is served.
fn log_waiting(device: &DeviceState, served: &UnixStream) {
    let DeviceState { name: disk, log, .. } = device;
    if let Some(suppressed) = log.pass_normal("waiting", "") {
        let (pid, uid) = peer(served);
        tracing::warn!(
            disk,
            served_pid = pid,
            served_uid = uid,
            suppressed,
            "another frontend has connected and waits until the current one leaves: a disk serves one at a time"
        );
    }
}

/// Shows a frontend in the statistics. Returns its process and user.
pub(super) fn count_frontend(state: &DeviceState, stream: &UnixStream) -> (Option<i32>, Option<u32>) {
    let (pid, uid) = peer(stream);
    state.facts.connections.add(1);
    let known = pid.and_then(|pid| u64::try_from(pid).ok());
    state.facts.frontend_pid.set(known.unwrap_or_default());
    state.facts.connected.set(1);
    (pid, uid)
}

/// Returns the process and user at the other end, as far as they are visible.
fn peer(socket: &UnixStream) -> (Option<i32>, Option<u32>) {
    let peer = sys::socket::peer_credentials(socket.as_fd());
    // A process in another PID namespace has the number 0.
    peer.map_or((None, None), |peer| {
        (Some(peer.pid).filter(|&pid| pid > 0), Some(peer.uid))
    })
}

/// Logs that a frontend left, or why its connection was ended.
fn log_end(device: &DeviceState, reason: Option<&ConnectionError>, hint: &str) {
    let DeviceState { name: disk, log, .. } = device;
    device.facts.connected.set(0);
    device.notices().tell(|| Notice::Disconnected);
    let Some(error) = reason else {
        if let Some(suppressed) = log.pass_normal("left", "") {
            tracing::info!(disk, suppressed, "frontend left");
        }
        return;
    };
    if let Some(suppressed) = log.pass("ended", error) {
        let error = chain(error);
        tracing::warn!(disk, error, suppressed, "connection ended{hint}");
    }
}

/// Returns advice for the end of a log line.
fn files_hint(out_of_files: bool) -> &'static str {
    match out_of_files {
        true => ": no file descriptor is left (raise ulimit -n, LimitNOFILE=)",
        false => "",
    }
}

/// The reason why a connection was ended.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    /// No message can be received.
    #[error(transparent)]
    Inbox(#[from] InboxError),
    /// A message failed, and there is no error reply for it.
    #[error(transparent)]
    Message(#[from] VhostError),
    /// The session was parked for another process, which did not take over, and cannot go on.
    #[error(transparent)]
    Parked(#[from] SessionError),
    /// A message was refused, and the protocol gives the frontend no answer to it.
    #[error("a message was refused, and only this can tell the frontend (no REPLY_ACK): {0}")]
    Untold(String),
}

impl From<io::Error> for ConnectionError {
    fn from(error: io::Error) -> Self {
        Self::Inbox(error.into())
    }
}

/// Locks a mutex, even after a panic of another holder: a panic leaves the guarded data consistent.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns whether the other end of a connection is closed.
fn has_hung_up(stream: &UnixStream) -> bool {
    let mut polled = [PollFd::new(stream, PollFlags::empty())];
    let no_wait = Timespec::default();
    poll(&mut polled, Some(&no_wait)).is_ok() && polled[0].revents().contains(PollFlags::HUP)
}
