//! A handle that ends a server from another thread.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::{read, write};

use super::session::parked::{ParkError, ParkedDisk};
use crate::succession::Bundle;

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
    /// The server was told to stop, for whatever reason.
    stops: AtomicBool,
    /// A request to park the session.
    park: Mutex<Option<Park>>,
}

/// A request to park the session of a server for another process.
#[derive(Debug)]
pub(super) struct Park {
    /// Requests in flight are waited for until then.
    pub(super) deadline: Instant,
    pub(super) parked: Sender<Result<(ParkedDisk, Bundle), ParkError>>,
    /// When this is disconnected, the other process has not taken over: the server goes on.
    pub(super) goes_on: Receiver<Never>,
}

/// Is never sent.
#[derive(Debug)]
pub(crate) enum Never {}

/// A server that parks its session, or has parked it. It goes on when this is dropped.
#[derive(Debug)]
pub(crate) struct Parking {
    parked: Receiver<Result<(ParkedDisk, Bundle), ParkError>>,
    _goes_on: Sender<Never>,
}

impl Parking {
    /// Waits for the disk until `deadline`.
    ///
    /// # Errors
    /// The disk cannot be parked now, or the server has ended.
    pub(crate) fn wait(&self, deadline: Instant) -> Result<(ParkedDisk, Bundle), ParkError> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.parked.recv_timeout(left) {
            Ok(parked) => parked,
            Err(RecvTimeoutError::Timeout) => Err(ParkError::Busy),
            Err(RecvTimeoutError::Disconnected) => Err(ParkError::Ended),
        }
    }
}

impl Stopper {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Shared {
            event: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
            ends: AtomicBool::new(false),
            stops: AtomicBool::new(false),
            park: Mutex::new(None),
        })))
    }

    /// Makes the server stop accepting connections, and end the current one once its rings have drained. Any thread.
    pub fn stop(&self) {
        // Release: pairs with the Acquire in `take_park` and `is_stop`; whoever resets the event afterwards sets it again.
        self.0.stops.store(true, Ordering::Release);
        self.signal();
    }

    fn signal(&self) {
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

    /// Makes the server park its session, with requests in flight waited for until `deadline`. Any thread.
    pub(crate) fn park(&self, deadline: Instant) -> Parking {
        let (reply, parked) = mpsc::channel();
        let (keep, goes_on) = mpsc::channel();
        *self.lock() = Some(Park {
            deadline,
            parked: reply,
            goes_on,
        });
        self.signal();
        Parking {
            parked,
            _goes_on: keep,
        }
    }

    /// Takes the request to park, if the server was woken up for that. Server's thread.
    pub(super) fn take_park(&self) -> Option<Park> {
        let park = self.lock().take()?;
        // A read fails only if there is nothing to reset.
        let _ = read(&self.0.event, &mut [0; 8]);
        if self.0.stops.load(Ordering::Acquire) {
            self.signal();
        }
        Some(park)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Park>> {
        // Consistent even after a panic: each change is one assignment.
        self.0.park.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether the server was stopped.
    pub(super) fn is_stop(&self) -> bool {
        self.0.stops.load(Ordering::Acquire)
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
