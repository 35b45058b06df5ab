//! From the bytes of a descriptor chain to an I/O request (VIRTIO 1.3, 5.2.6).
//!
//! Framing is by bytes, not by descriptors: the header is the first sixteen readable bytes, and the status the last
//! writable one. Every number from the guest is checked here, once.

use virtio_bindings::bindings::virtio_blk as blk;

use crate::blk::latency::Operation;
use crate::io::{IoOp, IoRequest};
use crate::virtqueue::Chain;

mod rules;
mod segments;
#[cfg(test)]
mod tests;

pub use rules::{Action, ID_LEN, Rules, Status};
use rules::{Refusal, checked_range, word};

/// Length of the header, which precedes the data.
const HEADER_LEN: usize = 16;

/// Reads the request in `request.iov`, and fills in the rest. The list is as [`Chain::walk`] left it, without the
/// status byte.
#[inline]
pub fn parse(chain: &Chain, request: &mut IoRequest, rules: &Rules<'_>) -> Action {
    match parse_inner(chain, request, rules) {
        Ok(action) => action,
        Err(Refusal::Status(status)) => Action::Answer(status, 0),
        // Only a request whose operation is set has a range.
        Err(Refusal::Range) => match Operation::of(request.op) {
            Some(operation) => Action::Invalid(operation),
            None => Action::Answer(Status::IoErr, 0),
        },
    }
}

#[inline]
fn parse_inner(chain: &Chain, request: &mut IoRequest, rules: &Rules<'_>) -> Result<Action, Refusal> {
    if chain.fault || chain.readable < HEADER_LEN as u64 {
        return Err(Status::IoErr.into());
    }
    let header = request.iov.read_front_16().ok_or(Status::IoErr)?;
    // The header may have used up some ranges.
    let readable_ranges = chain.readable_ranges - request.iov.removed_ranges();
    let [request_type, _reserved] = [word(&header, 0), word(&header, 4)];
    let sector = u64::from(word(&header, 8)) | u64::from(word(&header, 12)) << 32;

    let needs_write = matches!(
        request_type,
        blk::VIRTIO_BLK_T_OUT | blk::VIRTIO_BLK_T_DISCARD | blk::VIRTIO_BLK_T_WRITE_ZEROES
    );
    if needs_write && rules.read_only {
        return Err(Status::IoErr.into());
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
        blk::VIRTIO_BLK_T_FLUSH if rules.inactive => Err(Status::IoErr.into()),
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
            let action = segments::parse(request, rules, &segments::DISCARD)?;
            Ok(match rules.unmap {
                true => action,
                false => Action::Answer(Status::Ok, 0),
            })
        }
        blk::VIRTIO_BLK_T_WRITE_ZEROES if rules.write_zeroes => {
            request.iov.truncate(readable_ranges);
            request.op = IoOp::WriteZeroes {
                durable: rules.write_through,
            };
            segments::parse(request, rules, &segments::WRITE_ZEROES)
        }
        _ => Err(Status::Unsupp.into()),
    }
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
