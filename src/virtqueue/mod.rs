//! Split virtqueues (VIRTIO 1.3, 2.7): the rings, descriptor chains, notification suppression.
//!
//! A ring is resolved to host addresses when it starts, and again when the memory table changes. It runs on one
//! IOThread, takes no lock and allocates nothing. It knows nothing of block devices.

mod chain;
mod inflight;
mod ring;

pub use chain::{Chain, ChainError};
pub use inflight::{InflightArea, InflightError, InflightRegion, RegionError, RegionLayout, SpareByte};
pub use ring::{MAX_QUEUE_SIZE, RingAddresses, RingError, RingFeatures, RingIndices, SplitRing, Wanted};
