//! A handle that ends a server from another thread.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::write;

/// Ends [`Server::run`](super::server::Server::run) from another thread.
#[derive(Clone, Debug)]
pub struct Stopper(
    /// Becomes readable when stopped, and stays readable.
    Arc<OwnedFd>,
);

impl Stopper {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd(
            0,
            EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC,
        )?)))
    }

    /// Makes the server stop accepting connections, and end the current one once its rings have drained. Any thread.
    pub fn stop(&self) {
        // A write fails only if the counter is full, and then the eventfd is readable already.
        let _ = write(&self.0, &1u64.to_ne_bytes());
    }

    /// Waits until `fd` is readable, the timeout expires, or the server is stopped. Returns whether it is stopped.
    pub(super) fn wait(&self, fd: Option<BorrowedFd<'_>>, timeout: Option<Duration>) -> bool {
        let readable = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let stop = self.0.as_fd();
        let mut fds = [readable(stop), readable(fd.unwrap_or(stop))];
        let timeout = timeout.and_then(|timeout| timeout.try_into().ok());
        // An interrupted wait is as good as an early timeout.
        let _ = poll(&mut fds, timeout.as_ref());
        !fds[0].revents().is_empty()
    }
}

impl AsRawFd for Stopper {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
