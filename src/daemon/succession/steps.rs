//! The steps of a take-over that need the main thread: the hand-over thread asks for them and waits.

use std::io;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Instant;

use super::heir::Outcome;
use super::message::Everything;
use super::refusal::Refusal;
use crate::succession::Bundle;
use crate::vhost_user::Parking;

/// A description, with the descriptors that it names.
pub(in crate::daemon) type Described = (Box<Everything>, Bundle);
/// A flush that has begun.
pub(in crate::daemon) type Flush = Receiver<io::Result<()>>;
/// A disk that parks its session, with its id.
pub(in crate::daemon) type ParkedDisk = (String, Parking);

/// A step that the main thread takes.
pub(in crate::daemon) enum Step {
    /// Describes everything in this format.
    Describe {
        format: u32,
        reply: Sender<Result<Described, Refusal>>,
    },
    /// Starts the flushes that disks make once their guests wait.
    FlushAhead { reply: Sender<Vec<Flush>> },
    /// Parks all disks, with requests in flight waited for until `deadline`. If that begins, an [`End`](Self::End) follows.
    Park {
        deadline: Instant,
        reply: Sender<Result<Vec<ParkedDisk>, Refusal>>,
    },
    /// The end of the take-over.
    End(Outcome),
}
