//! Connections that the daemon no longer uses. Helper only.
//!
//! A server may still have requests of such a connection, and execute them after those of a later one. So it is told that
//! no more will come, and the connection is over when the server has closed its end. Answers are dropped.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown, recv, shutdown};

use super::peer::Peers;

/// The pause between two questions whether an end is closed.
const PAUSE: Duration = Duration::from_millis(5);

/// Connections that are ending.
#[derive(Debug)]
pub(super) struct Ending {
    /// Connections whose server may still send something.
    open: Vec<Arc<OwnedFd>>,
    /// Connections whose stream has ended, but which the server may not have closed.
    ended: Vec<Arc<OwnedFd>>,
    /// `None`: the end of a stream must suffice, as for connections over a network.
    peers: Option<Peers>,
}

impl Ending {
    pub(super) fn new(peers: Option<Peers>) -> Self {
        Self {
            open: Vec::new(),
            ended: Vec::new(),
            peers,
        }
    }

    pub(super) fn push(&mut self, socket: Arc<OwnedFd>) {
        // It fails if the connection is broken already.
        let _ = shutdown(&socket, Shutdown::Write);
        self.open.push(socket);
    }

    /// Returns whether the server may still execute requests of these connections.
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty() && self.ended.is_empty()
    }

    /// Returns what to wait for, and how long.
    pub(super) fn awaited(&self) -> (Vec<PollFd<'_>>, Option<Duration>) {
        let fds = self.open.iter().map(|fd| PollFd::new(fd, PollFlags::IN));
        (fds.collect(), (!self.ended.is_empty()).then_some(PAUSE))
    }

    /// Looks at what has come, and at what is closed. Does not wait.
    pub(super) fn progress(&mut self) {
        let (open, ended) = std::mem::take(&mut self.open)
            .into_iter()
            .partition(may_send_more);
        self.open = open;
        self.ended.extend(ended);
        let peers = &self.peers;
        self.ended.retain(|fd| {
            let closed = peers
                .as_ref()
                .is_none_or(|peers| peers.is_closed(fd).unwrap_or(true));
            !closed
        });
    }

    /// Waits until all are over. Returns false if `end` comes first.
    pub(super) fn finish(&mut self, end: Option<Instant>) -> bool {
        loop {
            self.progress();
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            if self.is_empty() || left == Some(Duration::ZERO) {
                return self.is_empty();
            }
            let (mut fds, pause) = self.awaited();
            let wait = [left, pause].into_iter().flatten().min();
            // What has come is looked at, whatever the result.
            let _ = poll(&mut fds, wait.and_then(|wait| wait.try_into().ok()).as_ref());
        }
    }
}

/// Drops what the server has sent. Returns whether there can be more.
#[allow(clippy::ptr_arg, reason = "the type that partition passes")]
fn may_send_more(socket: &Arc<OwnedFd>) -> bool {
    let mut dropped = [0; 4096];
    loop {
        match recv(socket, &mut dropped[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => return false,
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return io::Error::from(error).kind() == io::ErrorKind::WouldBlock,
        }
    }
}
