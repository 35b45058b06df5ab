//! Ring setup: the addresses and features of a ring, its errors, and the resolution of its parts.

use super::super::inflight::InflightError;
use crate::memory::{GuestMemory, MappedArea};

/// Largest supported queue size, a power of two.
pub const MAX_QUEUE_SIZE: u16 = 1024;

/// The addresses of a ring's parts, in the frontend's own address space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingAddresses {
    /// Descriptor table (2.7.5), aligned to 16.
    pub desc: u64,
    /// Available ring (2.7.6), aligned to 2.
    pub avail: u64,
    /// Used ring (2.7.8), aligned to 4.
    pub used: u64,
}

/// The negotiated features that affect a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingFeatures {
    /// VIRTIO_F_EVENT_IDX: `used_event` and `avail_event` suppress notifications instead of flags.
    pub event_idx: bool,
    /// VIRTIO_F_INDIRECT_DESC: chains may use indirect tables.
    pub indirect: bool,
}

/// The reason why a ring cannot be set up or must stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The queue size is zero, not a power of two, or above [`MAX_QUEUE_SIZE`].
    #[error("queue size {0} is not a power of two from 1 to {MAX_QUEUE_SIZE}")]
    BadSize(u32),
    /// A part of the ring is not inside one region of the memory table.
    #[error(
        "{part} at {addr:#x} ({len} bytes) is not in the frontend's memory table (is all of the guest's memory shared? QEMU: \
         share=on on its memory backend)"
    )]
    NotMapped {
        /// Name of the part.
        part: &'static str,
        /// Its address in the frontend's address space.
        addr: u64,
        /// Its size in bytes.
        len: usize,
    },
    /// A part of the ring is not aligned as the specification requires (2.7).
    #[error("{part} at {addr:#x} is not aligned to {align} bytes")]
    Misaligned {
        /// Name of the part.
        part: &'static str,
        /// Its address in the frontend's address space.
        addr: u64,
        /// The alignment in bytes.
        align: usize,
    },
    /// The driver claims more available entries than the ring has.
    #[error("available index {idx} is more than the queue size {size} ahead of {next}")]
    BadAvailIndex {
        /// The driver's index.
        idx: u16,
        /// Our position.
        next: u16,
        /// Entries in the ring.
        size: u16,
    },
    /// An available entry names a descriptor that does not exist.
    #[error("available ring names descriptor {head} of {size}")]
    BadHead {
        /// The descriptor's index.
        head: u16,
        /// Entries in the descriptor table.
        size: u16,
    },
    /// The driver made a chain available that is still in flight.
    #[error("descriptor chain {0} is already in flight")]
    InFlight(u16),
    /// The record of the chains in flight is invalid.
    #[error(transparent)]
    Region(#[from] InflightError),
}

pub(super) fn check_size(size: u32) -> Result<u16, RingError> {
    match u16::try_from(size) {
        Ok(n) if n.is_power_of_two() && n <= MAX_QUEUE_SIZE => Ok(n),
        _ => Err(RingError::BadSize(size)),
    }
}

pub(super) fn resolve(
    memory: &GuestMemory,
    at: RingAddresses,
    size: u16,
) -> Result<[MappedArea; 3], RingError> {
    let n = usize::from(size);
    let part = |part, addr: u64, len, align: usize| {
        let area = memory
            .resolve_user(addr, len)
            .ok_or(RingError::NotMapped { part, addr, len })?;
        // We access the host's address, which has the guest's alignment because mappings start at page boundaries.
        if area.as_ptr().addr().is_multiple_of(align) {
            Ok(area)
        } else {
            Err(RingError::Misaligned { part, addr, align })
        }
    };
    Ok([
        part("descriptor table", at.desc, 16 * n, 16)?,
        part("available ring", at.avail, 6 + 2 * n, 2)?,
        part("used ring", at.used, 6 + 8 * n, 4)?,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_sizes_are_powers_of_two_up_to_1024() {
        let good: Vec<u32> = (0..=70_000).filter(|&n| check_size(n).is_ok()).collect();
        assert_eq!(good, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]);
    }
}
