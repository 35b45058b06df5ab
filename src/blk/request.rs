//! From the bytes of a descriptor chain to an I/O request (VIRTIO 1.3, 5.2.6).
//!
//! Framing is by bytes, not by descriptors: the header is the first sixteen readable bytes, the status the last
//! writable one. Every figure of the guest is checked here, once.

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
    /// Done.
    Ok,
    /// Failed.
    IoErr,
    /// Not understood.
    Unsupp,
}

impl Status {
    /// Its value in guest memory.
    pub fn byte(self) -> u8 {
        let value = match self {
            Self::Ok => blk::VIRTIO_BLK_S_OK,
            Self::IoErr => blk::VIRTIO_BLK_S_IOERR,
            Self::Unsupp => blk::VIRTIO_BLK_S_UNSUPP,
        };
        value.to_le_bytes()[0]
    }
}

/// What to check requests against.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// Size of the disk in bytes.
    pub capacity: u64,
    /// Granularity of offsets and lengths in bytes: a power of two.
    pub block_size: u32,
    /// Nothing may be written.
    pub read_only: bool,
    /// DISCARD was offered.
    pub discard: bool,
    /// WRITE_ZEROES was offered.
    pub write_zeroes: bool,
    /// Writes are stable before they complete.
    pub write_through: bool,
    /// Answer to GET_ID, padded with NULs.
    pub serial: &'a [u8; ID_LEN],
}

/// What is to be done about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Hand it to the engine; on success `written` bytes of data are in guest memory.
    Submit {
        /// Bytes that a successful request writes into the chain, without the status.
        written: u32,
        /// Bytes of payload, for the statistics.
        bytes: u64,
    },
    /// Answer at once.
    Answer(Status, u32),
}

/// Why no request comes out of a chain; it is answered with this status.
type Refusal = Status;

/// Reads the request in `request.iov` (as [`Chain::walk`] left it, its status byte taken off) and fills in the rest.
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
    // Readable ranges that are left: those that the header did not use up.
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

/// A read or write of all of `request.iov`.
fn transfer(request: &mut IoRequest, sector: u64, rules: &Rules<'_>) -> Result<Action, Refusal> {
    let bytes = request.iov.len() as u64;
    request.offset = checked_range(sector, bytes, rules)?;
    // The used element counts 32 bits of written bytes and the status byte.
    let written = u32::try_from(bytes)
        .ok()
        .filter(|&n| n < u32::MAX)
        .ok_or(Status::IoErr)?;
    let written = if request.op == IoOp::Read { written } else { 0 };
    Ok(Action::Submit { written, bytes })
}

/// The byte offset of `sector`, if `bytes` from there are whole blocks and lie on the disk.
fn checked_range(sector: u64, bytes: u64, rules: &Rules<'_>) -> Result<u64, Refusal> {
    let offset = sector.checked_mul(512).ok_or(Status::IoErr)?;
    let end = offset.checked_add(bytes).ok_or(Status::IoErr)?;
    let within_block = u64::from(rules.block_size) - 1;
    if end > rules.capacity || (offset | bytes) & within_block != 0 {
        return Err(Status::IoErr);
    }
    Ok(offset)
}
