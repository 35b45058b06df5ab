//! The loop of the metrics thread: accepts connections, and lets each go on as far as it can.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{Errno, write};
use rustix::net::{SocketFlags, accept_with};

use super::connection::Connection;
use super::pace::Pace;
use super::page::Pages;
use super::request::Format;
use crate::log_limit::LogLimit;

/// Maximum number of connections at a time. Another one closes the oldest.
const CONNECTIONS_MAX: usize = 32;
/// Maximum number of connections to accept in an interval. More of them wait in the kernel.
const ACCEPTS: u32 = 10;
const ACCEPT_INTERVAL: Duration = Duration::from_millis(100);

/// A socket that clients connect to.
#[derive(Debug)]
pub enum Listener {
    /// A Unix socket.
    Unix(UnixListener),
    /// A TCP socket.
    Tcp(TcpListener),
}

impl Listener {
    fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Unix(listener) => listener.set_nonblocking(true),
            Self::Tcp(listener) => listener.set_nonblocking(true),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(listener) => listener.as_fd(),
            Self::Tcp(listener) => listener.as_fd(),
        }
    }
}

/// A server of one page.
#[derive(Debug)]
pub struct Server {
    listeners: Vec<Listener>,
    /// The oldest comes first.
    connections: Vec<Connection>,
    pages: Pages,
    pace: Pace,
    stop: Stop,
    log: LogLimit,
}

/// Ends [`Server::run`] from any thread.
#[derive(Clone, Debug)]
pub struct Stop(Arc<OwnedFd>);

impl Stop {
    /// Ends the server soon.
    pub fn stop(&self) {
        // Fails only if the counter is full, and then the server is stopped already.
        let _ = write(&self.0, &1u64.to_ne_bytes());
    }
}

impl Server {
    /// Makes a server. `make_page` is called on the server's thread, at most ten times a second for each format.
    ///
    /// # Errors
    /// A socket cannot be made non-blocking, or no file descriptor is left.
    pub fn new(
        listeners: Vec<Listener>,
        make_page: impl FnMut(Format) -> String + Send + 'static,
    ) -> io::Result<Self> {
        listeners.iter().try_for_each(Listener::set_nonblocking)?;
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self {
            listeners,
            connections: Vec::new(),
            pages: Pages::new(make_page),
            pace: Pace::new(ACCEPTS, ACCEPT_INTERVAL),
            stop: Stop(Arc::new(event)),
            log: LogLimit::new(),
        })
    }

    /// Returns a handle that ends the server.
    pub fn stopper(&self) -> Stop {
        self.stop.clone()
    }

    /// Serves the page until [`Stop::stop`].
    pub fn run(mut self) {
        while !self.wait() {
            let now = Instant::now();
            self.connections.retain(|connection| !connection.is_over(now));
            self.pages.forget(now);
        }
    }

    /// Waits for events and handles them. Returns whether the server is stopped.
    fn wait(&mut self) -> bool {
        let now = Instant::now();
        let accepting = match self.pace.left(now) {
            0 => 0,
            _ => self.listeners.len(),
        };
        let mut fds = vec![PollFd::new(&*self.stop.0, PollFlags::IN)];
        let listeners = self.listeners[..accepting].iter();
        fds.extend(listeners.map(|listener| PollFd::new(listener, PollFlags::IN)));
        let connections = self.connections.iter();
        fds.extend(
            connections.map(|connection| PollFd::from_borrowed_fd(connection.as_fd(), connection.interest())),
        );
        // Fails only for lack of memory or because of a signal. Then there are no events.
        let _ = poll(&mut fds, self.timeout(now).as_ref());
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        let now = Instant::now();
        for (connection, ready) in self.connections.iter_mut().zip(&ready[1 + accepting..]) {
            if *ready {
                connection.go_on(&mut self.pages, now);
            }
        }
        for (listener, ready) in ready[1..=accepting].iter().enumerate() {
            if *ready {
                self.accept(listener, now);
            }
        }
        ready[0]
    }

    /// Returns the longest time to wait, or `None` if nothing is due.
    fn timeout(&self, now: Instant) -> Option<Timespec> {
        let connections = self.connections.iter().map(Connection::deadline);
        let due = connections
            .chain(self.pace.pause())
            .chain(self.pages.deadline())
            .min()?;
        Timespec::try_from(due.saturating_duration_since(now)).ok()
    }

    /// Accepts the connections that wait, as many as the pace allows.
    fn accept(&mut self, listener: usize, now: Instant) {
        while self.pace.left(now) > 0 {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let accepted = accept_with(&self.listeners[listener], flags);
            if matches!(accepted, Err(Errno::AGAIN)) {
                return;
            }
            self.pace.spend();
            match accepted {
                Ok(socket) => self.begin(socket, now),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                // What is missing may be back in the next interval: the attempts use up this one.
                Err(error) => {
                    if let Some(suppressed) = self.log.pass("not accepted", "") {
                        let error = io::Error::from(error);
                        tracing::warn!(%error, suppressed, "cannot accept a connection for metrics: retrying");
                    }
                }
            }
        }
    }

    fn begin(&mut self, socket: OwnedFd, now: Instant) {
        if self.connections.len() >= CONNECTIONS_MAX {
            if let Some(suppressed) = self.log.pass("too many", "") {
                tracing::warn!(
                    connections = CONNECTIONS_MAX,
                    suppressed,
                    "too many connections for metrics: the oldest is closed"
                );
            }
            self.connections.remove(0);
        }
        let mut connection = Connection::new(socket, now);
        connection.go_on(&mut self.pages, now);
        if !connection.is_over(now) {
            self.connections.push(connection);
        }
    }
}
