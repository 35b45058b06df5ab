//! The state of one vring as the frontend has set it up so far, in any order of messages.

use std::fs::File;
use std::sync::Arc;

use crate::virtqueue::RingAddresses;

/// The kick eventfd from SET_VRING_KICK.
#[derive(Debug, Default)]
pub(super) enum Kick {
    /// Not set yet.
    #[default]
    Unset,
    /// Set, but not handed to the queue yet. `None` means that the frontend uses no eventfd.
    Pending(Option<Arc<File>>),
    /// Handed to the queue.
    Taken(Option<Arc<File>>),
}

/// The state of one vring in a session.
#[derive(Debug, Default)]
pub(super) struct Vring {
    pub(super) size: Option<u32>,
    pub(super) addresses: Option<RingAddresses>,
    /// Guest address of the used ring, if writes to it are logged.
    pub(super) log: Option<u64>,
    pub(super) base: u16,
    pub(super) kick: Kick,
    pub(super) call: Option<Arc<File>>,
    pub(super) err: Option<Arc<File>>,
    /// The ring could not start, and no message since then could change that.
    pub(super) failed: bool,
    /// The queue runs the ring.
    pub(super) running: bool,
    /// This session has started the ring, so it takes nothing over from a predecessor any more.
    pub(super) was_started: bool,
    /// The queue was told to stop the ring, and has not answered yet.
    pub(super) draining: bool,
    /// The ring ran when the session was parked.
    pub(super) parked: bool,
}

impl Vring {
    /// True if the queue neither runs nor drains the ring.
    pub(super) fn is_idle(&self) -> bool {
        !self.running && !self.draining
    }

    /// True if the ring does not run, and everything that it needs to start is known.
    pub(super) fn is_ready(&self) -> bool {
        !self.running
            && !self.failed
            && self.size.is_some()
            && self.addresses.is_some()
            && matches!(self.kick, Kick::Pending(_))
    }
}
