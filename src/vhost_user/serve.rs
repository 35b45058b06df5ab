//! Accepts frontends and serves one at a time, until the server is stopped.
//!
//! Runs on the disk's control thread. A misbehaving frontend can only end its own connection.

use std::io::{self, ErrorKind};
use std::mem;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vhost::vhost_user::{BackendReqHandler, Error as VhostError};

use super::error::SessionError;
use super::error::chain;
use super::handler::Handler;
use super::inbox::{Inbox, InboxError, Next};
use super::server::{Server, Socket};
use super::session::Session;
use crate::blk::device::{BlkDevice, DeviceState};
use crate::blk::notice::Notice;
use crate::limits::{is_out_of_files, out_of_files};
use crate::sys;

/// Pause before retrying after `accept` failed (out of file descriptors or memory).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl Server {
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
            Socket::Listening(_) | Socket::Closed => {
                while let Some(stream) = self.accept(device) {
                    self.serve(stream, device);
                }
            }
        }
    }

    /// Waits for the next frontend. Returns `None` when stopped.
    fn accept(&self, device: &BlkDevice) -> Option<UnixStream> {
        let Socket::Listening(listener) = &self.socket else {
            return None;
        };
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

    fn serve(&mut self, stream: UnixStream, device: &mut BlkDevice) {
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
        let handler = Handler::new(Session::new(device, self.channel.clone()), &socket);
        let handler = Arc::new(Mutex::new(handler));
        let requests = BackendReqHandler::from_stream(stream, Arc::clone(&handler));
        self.serve_to_end(&socket, requests, handler, &state);
    }

    /// Serves the frontend until it leaves, and ends the session.
    pub(super) fn serve_to_end<'a>(
        &mut self,
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
        } else if self.stop.is_stop() {
            // Requests in flight may take long, and another disk may be served at this path meanwhile.
            self.close();
        }
        // Before the connection is closed: a frontend that sees it end regards the used rings as final.
        lock(&handler).session.finish();
        drop(requests);
        drop(handler);
        log_end(state, reason.as_ref(), hint);
    }

    /// Accepts no frontend any more, and removes the socket's file.
    fn close(&mut self) {
        // The file goes first: see the field.
        self.path = None;
        self.socket = Socket::Closed;
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
            Socket::Connected(_) | Socket::Closed => None,
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
