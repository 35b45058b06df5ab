//! The line on which a server gets the session of a predecessor, and its other end. Any thread.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Instant;

use super::session::parked::{ParkError, ParkedDisk};
use crate::succession::Bundle;

/// The disk that a new process goes on with, as its server sees it.
#[derive(Debug)]
pub(crate) struct Inheritance {
    pub(super) disk: Receiver<(ParkedDisk, Bundle)>,
    pub(super) restored: Sender<Result<(), ParkError>>,
    pub(super) starts: Receiver<()>,
    /// A connection on which the features are negotiated again.
    pub(super) negotiation: (UnixStream, UnixStream),
}

/// The other end of an [`Inheritance`]. Dropping it makes the server end.
#[derive(Debug)]
pub(crate) struct Heir {
    disk: Sender<(ParkedDisk, Bundle)>,
    restored: Receiver<Result<(), ParkError>>,
    starts: Sender<()>,
}

/// Makes both ends.
///
/// # Errors
/// No file descriptor is left.
pub(crate) fn inheritance() -> io::Result<(Heir, Inheritance)> {
    let (disk, parked) = mpsc::channel();
    let (reply, restored) = mpsc::channel();
    let (starts, start) = mpsc::channel();
    let heir = Heir {
        disk,
        restored,
        starts,
    };
    let inheritance = Inheritance {
        disk: parked,
        restored: reply,
        starts: start,
        negotiation: UnixStream::pair()?,
    };
    Ok((heir, inheritance))
}

impl Heir {
    /// Hands over what the predecessor has parked.
    pub(crate) fn hand_over(&self, disk: ParkedDisk, bundle: Bundle) {
        // The server's end shows in `wait`.
        let _ = self.disk.send((disk, bundle));
    }

    /// Waits until the disk and the session are restored.
    ///
    /// # Errors
    /// They cannot be, or not in time.
    pub(crate) fn wait(&self, deadline: Instant) -> Result<(), ParkError> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.restored.recv_timeout(left) {
            Ok(restored) => restored,
            Err(RecvTimeoutError::Timeout) => Err(ParkError::Late),
            Err(RecvTimeoutError::Disconnected) => Err(ParkError::Ended),
        }
    }

    /// The predecessor has let go: the rings start.
    pub(crate) fn start(&self) {
        let _ = self.starts.send(());
    }
}
