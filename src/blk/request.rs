//! From the bytes of a descriptor chain to an I/O request (VIRTIO 1.3, 5.2.6).
//!
//! Framing is by bytes, not by descriptors: the header is the first sixteen readable bytes, and the status the last
//! writable one. Every number from the guest is checked here, once.

use virtio_bindings::bindings::virtio_blk as blk;

use crate::io::{IoOp, IoRequest};
use crate::virtqueue::Chain;

mod segments;
#[cfg(test)]
mod tests;

/// Length of the serial number: VIRTIO_BLK_ID_BYTES.
pub const ID_LEN: usize = 20;
const HEADER_LEN: usize = 16;

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
    /// Size of the disk in bytes.
    pub capacity: u64,
    /// Granularity of offsets and lengths in bytes: a power of two.
    pub block_size: u32,
    /// The disk cannot be written.
    pub read_only: bool,
    /// The device has offered DISCARD.
    pub discard: bool,
    /// The device has offered WRITE_ZEROES.
    pub write_zeroes: bool,
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
}

/// The status of a request that is refused.
type Refusal = Status;

/// Reads the request in `request.iov`, and fills in the rest. The list is as [`Chain::walk`] left it, without the
/// status byte.
pub fn parse(chain: &Chain, request: &mut IoRequest, rules: &Rules<'_>) -> Action {
    match parse_inner(chain, request, rules) {
        Ok(action) => action,
        Err(status) => Action::Answer(status, 0),
    }
}

fn parse_inner(chain: &Chain, request: &mut IoRequest, rules: &Rules<'_>) -> Result<Action, Refusal> {
    if chain.fault || chain.readable < HEADER_LEN as u64 {
        return Err(Status::IoErr);
    }
    let ranges = request.iov.as_slice().len();
    let header = request.iov.read_front_16().ok_or(Status::IoErr)?;
    // The header may have used up some ranges.
    let readable_ranges = chain.readable_ranges - (ranges - request.iov.as_slice().len());
    let [request_type, _reserved] = [word(&header, 0), word(&header, 4)];
    let sector = u64::from(word(&header, 8)) | u64::from(word(&header, 12)) << 32;

    let needs_write = matches!(
        request_type,
        blk::VIRTIO_BLK_T_OUT | blk::VIRTIO_BLK_T_DISCARD | blk::VIRTIO_BLK_T_WRITE_ZEROES
    );
    if needs_write && rules.read_only {
        return Err(Status::IoErr);
    }
    match request_type {
        blk::VIRTIO_BLK_T_IN => {
            request.iov.skip_ranges(readable_ranges);
            request.op = IoOp::Read;
            transfer(request, sector, rules)
        }
        blk::VIRTIO_BLK_T_OUT => {
            request.iov.truncate(readable_ranges);
            request.op = IoOp::Write {
                durable: rules.write_through,
            };
            transfer(request, sector, rules)
        }
        blk::VIRTIO_BLK_T_FLUSH => {
            request.iov.clear();
            request.op = IoOp::Flush;
            Ok(Action::Submit { written: 0, bytes: 0 })
        }
        blk::VIRTIO_BLK_T_GET_ID => {
            request.iov.skip_ranges(readable_ranges);
            let written = request.iov.write_front(rules.serial);
            Ok(Action::Answer(Status::Ok, u32::try_from(written).unwrap_or(0)))
        }
        blk::VIRTIO_BLK_T_DISCARD if rules.discard => {
            request.iov.truncate(readable_ranges);
            request.op = IoOp::Discard;
            segments::parse(request, rules, &segments::DISCARD)
        }
        blk::VIRTIO_BLK_T_WRITE_ZEROES if rules.write_zeroes => {
            request.iov.truncate(readable_ranges);
            request.op = IoOp::WriteZeroes {
                durable: rules.write_through,
            };
            segments::parse(request, rules, &segments::WRITE_ZEROES)
        }
        _ => Err(Status::Unsupp),
    }
}

fn word(bytes: &[u8; HEADER_LEN], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Checks a read or write of the whole `request.iov`.
fn transfer(request: &mut IoRequest, sector: u64, rules: &Rules<'_>) -> Result<Action, Refusal> {
    let bytes = request.iov.len() as u64;
    request.offset = checked_range(sector, bytes, rules)?;
    // The used element has 32 bits for the written bytes with the status byte.
    let written = u32::try_from(bytes)
        .ok()
        .filter(|&n| n < u32::MAX)
        .ok_or(Status::IoErr)?;
    let written = if request.op == IoOp::Read { written } else { 0 };
    Ok(Action::Submit { written, bytes })
}

/// Returns the byte offset of `sector`. The `bytes` from there must be whole blocks on the disk.
fn checked_range(sector: u64, bytes: u64, rules: &Rules<'_>) -> Result<u64, Refusal> {
    let offset = sector.checked_mul(512).ok_or(Status::IoErr)?;
    let end = offset.checked_add(bytes).ok_or(Status::IoErr)?;
    let within_block = u64::from(rules.block_size) - 1;
    if end > rules.capacity || (offset | bytes) & within_block != 0 {
        return Err(Status::IoErr);
    }
    Ok(offset)
}
