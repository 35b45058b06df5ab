//! What the frontend has said about one vring so far, whatever the order in which it said it.

use std::fs::File;

use crate::virtqueue::RingAddresses;

/// The kick eventfd, as SET_VRING_KICK gave it.
#[derive(Debug, Default)]
pub(super) enum Kick {
    /// Not set yet.
    #[default]
    Unset,
    /// Set, and not handed to the queue yet; `None` means that there is none.
    Pending(Option<File>),
    /// Handed to the queue.
    Taken,
}

/// The state of one vring in a session.
#[derive(Debug, Default)]
pub(super) struct Vring {
    pub(super) size: Option<u32>,
    pub(super) addresses: Option<RingAddresses>,
    /// Guest address of the used ring, if it is to be logged.
    pub(super) log: Option<u64>,
    pub(super) base: u16,
    pub(super) kick: Kick,
    /// It could not start, and nothing has been said since that could help.
    pub(super) failed: bool,
    /// The queue runs it.
    pub(super) running: bool,
    /// The log says that it goes on after a predecessor.
    pub(super) resumed: bool,
    /// The queue has been told to stop, and has not answered yet.
    pub(super) draining: bool,
}

impl Vring {
    /// True if the queue does nothing for it.
    pub(super) fn is_idle(&self) -> bool {
        !self.running && !self.draining
    }

    /// True if all is known that a ring needs to start, and it does not run.
    pub(super) fn is_ready(&self) -> bool {
        !self.running
            && !self.failed
            && self.size.is_some()
            && self.addresses.is_some()
            && matches!(self.kick, Kick::Pending(_))
    }
}
