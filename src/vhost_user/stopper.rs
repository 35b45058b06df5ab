//! A handle that ends a server from another thread.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::write;

/// Ends [`Server::run`](super::server::Server::run) from another thread.
///
/// [`stop`](Self::stop) removes the disk from a process that goes on: its image is flushed and released, as after any
/// frontend. [`end`](Self::end) prepares for the end of the process, which leaves the image as it is.
#[derive(Clone, Debug)]
pub struct Stopper(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Becomes readable when stopped, and stays readable.
    event: OwnedFd,
    /// The process is going to end.
    ends: AtomicBool,
}

impl Stopper {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Shared {
            event: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
            ends: AtomicBool::new(false),
        })))
    }

    /// Makes the server stop accepting connections, and end the current one once its rings have drained. Any thread.
    pub fn stop(&self) {
        // A write fails only if the counter is full, and then the eventfd is readable already.
        let _ = write(&self.0.event, &1u64.to_ne_bytes());
    }

    /// As [`stop`](Self::stop), because the process is going to end: the image is neither flushed nor unlocked, and the
    /// kernel's report of a failed write is left for the next process. Any thread.
    pub fn end(&self) {
        // Release: pairs with the Acquire in `is_end`; whoever sees the stop sees this too.
        self.0.ends.store(true, Ordering::Release);
        self.stop();
    }

    /// Returns whether the server was stopped because the process is going to end.
    pub(super) fn is_end(&self) -> bool {
        self.0.ends.load(Ordering::Acquire)
    }

    /// Waits until `fd` is readable, the timeout expires, or the server is stopped. Returns whether it is stopped.
    pub(super) fn wait(&self, fd: Option<BorrowedFd<'_>>, timeout: Option<Duration>) -> bool {
        let readable = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let stop = self.0.event.as_fd();
        let mut fds = [readable(stop), readable(fd.unwrap_or(stop))];
        let timeout = timeout.and_then(|timeout| timeout.try_into().ok());
        // An interrupted wait is as good as an early timeout.
        let _ = poll(&mut fds, timeout.as_ref());
        !fds[0].revents().is_empty()
    }
}

impl AsRawFd for Stopper {
    fn as_raw_fd(&self) -> RawFd {
        self.0.event.as_raw_fd()
    }
}
