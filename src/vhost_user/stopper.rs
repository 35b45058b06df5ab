//! A handle that ends a server from another thread.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Ends [`Server::run`](super::server::Server::run) from another thread.
#[derive(Clone, Debug)]
pub struct Stopper(
    /// Becomes readable when stopped, and stays readable.
    Arc<EventFd>,
);

impl Stopper {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(EventFd::new(EFD_NONBLOCK)?)))
    }

    /// Makes the server stop accepting connections, and end the current one once its rings have drained. Any thread.
    pub fn stop(&self) {
        // A write fails only if the counter is full, and then the eventfd is readable already.
        let _ = self.0.write(1);
    }

    /// Waits until `fd` is readable, the timeout expires, or the server is stopped. Returns whether it is stopped.
    pub(super) fn wait(&self, fd: Option<RawFd>, timeout: Option<Duration>) -> bool {
        let poll = |fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        // `poll` ignores a negative fd.
        let mut fds = [poll(self.0.as_raw_fd()), poll(fd.unwrap_or(-1))];
        let timeout = timeout.map_or(-1, |t| i32::try_from(t.as_millis()).unwrap_or(i32::MAX));
        // SAFETY: the array is valid for its two elements.
        unsafe { libc::poll(fds.as_mut_ptr(), 2, timeout) };
        fds[0].revents != 0
    }
}

impl AsRawFd for Stopper {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
