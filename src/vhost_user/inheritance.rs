//! The line on which a server gets the session of a predecessor, and its other end. Any thread.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Instant;

use super::session::parked::{ParkError, ParkedDisk};
use crate::succession::Bundle;

/// The state in which a predecessor leaves a disk.
pub(super) enum Legacy {
    /// It has parked the disk.
    Parked(Box<ParkedDisk>, Bundle),
    /// It has ended without that.
    Nothing,
}

/// The disk that a new process goes on with, as its server sees it.
#[derive(Debug)]
pub(crate) struct Inheritance {
    pub(super) legacy: Receiver<Legacy>,
    pub(super) restored: Sender<Result<(), ParkError>>,
    pub(super) starts: Receiver<()>,
    /// A connection on which the features are negotiated again.
    pub(super) negotiation: (UnixStream, UnixStream),
}

/// The other end of an [`Inheritance`]. Dropping it makes the server end.
#[derive(Debug)]
pub(crate) struct Heir {
    legacy: Sender<Legacy>,
    restored: Receiver<Result<(), ParkError>>,
    starts: Sender<()>,
}

/// Makes both ends.
///
/// # Errors
/// No file descriptor is left.
pub(crate) fn inheritance() -> io::Result<(Heir, Inheritance)> {
    let (bequeath, legacy) = mpsc::channel();
    let (reply, restored) = mpsc::channel();
    let (starts, start) = mpsc::channel();
    let heir = Heir {
        legacy: bequeath,
        restored,
        starts,
    };
    let inheritance = Inheritance {
        legacy,
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
        let _ = self.legacy.send(Legacy::Parked(Box::new(disk), bundle));
    }

    /// The predecessor has ended before it has parked the disk: the server begins anew, and the frontend has to connect
    /// again.
    pub(crate) fn begin_anew(&self) {
        // The server has not ended: nobody has asked it to.
        let _ = self.legacy.send(Legacy::Nothing);
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
