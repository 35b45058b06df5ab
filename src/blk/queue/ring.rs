//! A ring that is set up, with the guest's memory and the chains that the queue owns. IOThread only.

use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use super::latencies::Latencies;
use super::ownership::Owned;
use crate::aio::{InProgress, PollerHandle};
use crate::engine::{Channel, PinnedMemory};
use crate::memory::{DirtyLog, GuestMemory, MemoryView, RingLog};
use crate::virtqueue::{ChainError, InflightArea, RingAddresses, RingError, RingFeatures, SplitRing};

/// The reason why a ring is broken.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The driver's part of the ring is invalid.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// A descriptor chain is invalid.
    #[error("descriptor chain {head}: {source}")]
    Chain {
        /// First descriptor of the chain.
        head: u16,
        /// The rule that the chain breaks.
        source: ChainError,
    },
    /// Memory that the ring needs is lost.
    #[error("{0} is gone: its file was cut short, or the memory has failed")]
    Lost(&'static str),
    /// A chain has no writable byte.
    #[error("descriptor chain {0} has no writable byte for the status")]
    NoStatus(u16),
}

impl QueueError {
    /// Returns the memory to wait for, if the error ends when the frontend gives that back.
    pub(super) fn missing(&self) -> Option<Missing> {
        match self {
            Self::Chain {
                source: ChainError::Removed(addr),
                ..
            } => Some(Missing::Chain(*addr)),
            _ => None,
        }
    }
}

/// The frontend's description of a ring that is to run.
#[derive(Debug)]
pub struct RingSetup {
    /// The mapped memory table.
    pub memory: Arc<GuestMemory>,
    /// Addresses of the ring's parts.
    pub addresses: RingAddresses,
    /// Number of entries.
    pub size: u32,
    /// The available index to continue at.
    pub base: u16,
    /// Negotiated features.
    pub features: RingFeatures,
    /// Memory to track chains in flight in, with those that a predecessor left there.
    pub inflight: Option<InflightArea>,
    /// The log of writes, if the VM migrates.
    pub log: Option<RingLog>,
}

/// The fate of requests that wait for room on the disk when their ring stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// They get one more try. Then they are left for the next backend, which is told where to continue
    /// (GET_VRING_BASE).
    HandOver,
    /// They stay in flight at once, if the ring is tracked: the frontend takes the in-flight region along
    /// (GET_VRING_BASE_INFLIGHT).
    Suspend,
    /// Nobody is told where to continue. They stay in flight if the ring is tracked. Otherwise they get one more try,
    /// and then an error.
    End,
}

/// The memory that a paused ring waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// Memory of the ring itself.
    Ring,
    /// Memory of the chain that is next, at this guest address.
    Chain(u64),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring => f.write_str("memory of the ring"),
            Self::Chain(addr) => write!(f, "memory of a request at {addr:#x}"),
        }
    }
}

/// A ring between its start and its stop.
#[derive(Debug)]
pub(super) struct Ring {
    pub(super) split: SplitRing,
    pub(super) owned: Owned,
    pub(super) latencies: Latencies,
    pub(super) memory: Rc<MemoryView>,
    /// The registration of the memory with the kernel.
    pinned: Option<PinnedMemory>,
    /// Present while the VM migrates.
    pub(super) log: Option<Arc<DirtyLog>>,
    /// The count of lost mappings when this ring's were last checked. `None`: never.
    pub(super) losses: Option<usize>,
    /// The IOThread polls the ring, so the driver need not kick.
    pub(super) polled: bool,
    /// The call eventfd was signalled because the ring has started.
    pub(super) has_signalled: bool,
    /// Present until the ring stops.
    pub(super) poller: Option<PollerHandle>,
    addresses: RingAddresses,
}

/// The state that a predecessor left a ring in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Predecessor {
    /// The in-flight region says where the predecessor stopped.
    pub(super) resumed: bool,
    /// Number of requests that the predecessor took, and that nobody can find.
    pub(super) lost: u16,
}

impl Ring {
    pub(super) fn new(
        setup: RingSetup,
        in_progress: InProgress,
    ) -> Result<(Box<Self>, Predecessor), RingError> {
        let mut split = SplitRing::new(
            &setup.memory,
            setup.addresses,
            setup.size,
            setup.base,
            setup.features,
        )?;
        let resumed = match setup.inflight {
            Some(area) => split.track(area)?,
            None => false,
        };
        // An in-flight region says more than notes in the ring.
        let lost = if resumed { 0 } else { split.adopt() };
        let mut ring = Box::new(Self {
            addresses: setup.addresses,
            memory: MemoryView::new(setup.memory),
            pinned: None,
            owned: Owned::new(split.size(), in_progress),
            latencies: Latencies::default(),
            split,
            log: None,
            losses: None,
            polled: false,
            has_signalled: false,
            poller: None,
        });
        ring.set_log(setup.log);
        Ok((ring, Predecessor { resumed, lost }))
    }

    /// Uses a new memory table from now on. Requests in flight keep the old one.
    pub(super) fn remap(&mut self, memory: &Arc<GuestMemory>) -> Result<(), RingError> {
        self.split.remap(memory, self.addresses)?;
        self.memory = MemoryView::new(Arc::clone(memory));
        Ok(())
    }

    /// Registers the memory with the kernel, if the engine of the channel was asked to.
    pub(super) fn pin(&mut self, channel: &Channel) {
        // The old registration ends after this, so memory that both tables have stays registered.
        self.pinned = channel.pin(self.memory.memory());
    }

    /// True if this memory is still away from the table.
    pub(super) fn misses(&self, missing: Missing) -> bool {
        match missing {
            // `remap` has found the whole ring.
            Missing::Ring => false,
            Missing::Chain(addr) => self.memory.was_removed(addr),
        }
    }

    /// Leaves the ring to its next backend, and returns the available index to continue at. Nothing is in flight.
    ///
    /// If the in-flight region goes along, the index stays: it counts what was taken, and the region says which of that
    /// is in flight.
    pub(super) fn hand_over(&mut self, stop: Stop) -> u16 {
        match stop {
            Stop::HandOver => self.split.leave(self.owned.left(), true),
            Stop::Suspend => self.split.leave(self.owned.left(), !self.split.is_tracked()),
            Stop::End => {}
        }
        // The next backend waits for kicks.
        self.split.leave_kicks_enabled();
        self.split.next_avail()
    }
}
