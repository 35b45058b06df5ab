//! The rules for requests, and the possible next steps.

use crate::blk::latency::Operation;
use virtio_bindings::bindings::virtio_blk as blk;

/// Length of the serial number: VIRTIO_BLK_ID_BYTES.
pub const ID_LEN: usize = 20;

/// The status byte of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The request succeeded.
    Ok,
    /// The request failed.
    IoErr,
    /// The device does not support the request.
    Unsupp,
}

impl Status {
    /// Returns the value in guest memory.
    pub fn byte(self) -> u8 {
        let value = match self {
            Self::Ok => blk::VIRTIO_BLK_S_OK,
            Self::IoErr => blk::VIRTIO_BLK_S_IOERR,
            Self::Unsupp => blk::VIRTIO_BLK_S_UNSUPP,
        };
        value.to_le_bytes()[0]
    }
}

/// The rules that requests are checked against.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// First byte of the disk in the node below.
    pub start: u64,
    /// Size of the disk in bytes.
    pub capacity: u64,
    /// Granularity of offsets and lengths in bytes: a power of two.
    pub block_size: u32,
    /// The disk cannot be written.
    pub read_only: bool,
    /// The disk can only be read, because another process may be using the image.
    pub inactive: bool,
    /// The device has offered DISCARD.
    pub discard: bool,
    /// The device has offered WRITE_ZEROES.
    pub write_zeroes: bool,
    /// Discards have an effect, and zeroes may be deallocated.
    pub unmap: bool,
    /// Every write is stable before it completes.
    pub write_through: bool,
    /// The answer to GET_ID, padded with NULs.
    pub serial: &'a [u8; ID_LEN],
}

/// The next step for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Hand it to the engine.
    Submit {
        /// Bytes that the request writes into the chain if it succeeds, without the status.
        written: u32,
        /// Bytes of payload, for the statistics.
        bytes: u64,
    },
    /// Answer it at once, with this status, and with this number of bytes written into the chain.
    Answer(Status, u32),
    /// Answer it at once, with [`Status::IoErr`]: the disk has no such blocks.
    Invalid(Operation),
}

/// The reason to refuse a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The disk has no such blocks.
    Range,
    /// Any other reason, with the status.
    Status(Status),
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

/// Reads a number from a header or a segment, which are 16 bytes long.
pub(super) fn word(bytes: &[u8; 16], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Returns the offset of `sector` in the node below. The `bytes` from there must be whole blocks on the disk.
pub(super) fn checked_range(sector: u64, bytes: u64, rules: &Rules<'_>) -> Result<u64, Refusal> {
    let offset = sector.checked_mul(512).ok_or(Refusal::Range)?;
    let end = offset.checked_add(bytes).ok_or(Refusal::Range)?;
    let within_block = u64::from(rules.block_size) - 1;
    if end > rules.capacity || (offset | bytes) & within_block != 0 {
        return Err(Refusal::Range);
    }
    // Cannot overflow: the disk ends where the node ends, at the latest.
    Ok(offset + rules.start)
}
