//! The payload of a discard or write-zeroes: a list of ranges (VIRTIO 1.3, 5.2.6).

use super::rules::{Action, Refusal, Rules, Status, checked_range, word};
use crate::blk::config::{MAX_DISCARD_SECTORS, MAX_RANGES, MAX_WRITE_ZEROES_SECTORS};
use crate::io::{IoRange, IoRequest};

/// Size of a struct virtio_blk_discard_write_zeroes.
const SEGMENT_LEN: usize = 16;
const UNMAP: u32 = 1; // VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP

/// The limits for the segments of one kind of request.
pub(super) struct Kind {
    max_sectors: u32,
    known_flags: u32,
}

pub(super) const DISCARD: Kind = Kind {
    max_sectors: MAX_DISCARD_SECTORS,
    known_flags: 0,
};

pub(super) const WRITE_ZEROES: Kind = Kind {
    max_sectors: MAX_WRITE_ZEROES_SECTORS,
    known_flags: UNMAP,
};

/// Reads the whole `request.iov` as segments into `request.ranges`.
pub(super) fn parse(request: &mut IoRequest, rules: &Rules<'_>, kind: &Kind) -> Result<Action, Refusal> {
    let len = request.iov.len();
    if len == 0 || !len.is_multiple_of(SEGMENT_LEN) || len > SEGMENT_LEN * MAX_RANGES as usize {
        return Err(Status::IoErr.into());
    }
    request.ranges.clear();
    let mut refused = None;
    while let Some(segment) = request.iov.read_front_16() {
        match parse_one(&segment, rules, kind) {
            Ok(range) => request.ranges.push(range),
            // An unknown flag outweighs errors in other segments (5.2.6.2).
            Err(Refusal::Status(Status::Unsupp)) => return Err(Status::Unsupp.into()),
            Err(refusal) => refused = Some(refusal),
        }
    }
    if let Some(refusal) = refused {
        return Err(refusal);
    }
    let bytes = request.ranges.iter().map(|r| r.len).sum();
    Ok(Action::Submit { written: 0, bytes })
}

fn parse_one(segment: &[u8; SEGMENT_LEN], rules: &Rules<'_>, kind: &Kind) -> Result<IoRange, Refusal> {
    let sector = u64::from(word(segment, 0)) | u64::from(word(segment, 4)) << 32;
    let [sectors, flags] = [word(segment, 8), word(segment, 12)];
    if flags & !kind.known_flags != 0 {
        return Err(Status::Unsupp.into());
    }
    if sectors > kind.max_sectors {
        return Err(Status::IoErr.into());
    }
    let len = u64::from(sectors) * 512;
    let offset = checked_range(sector, len, rules)?;
    Ok(IoRange {
        offset,
        len,
        unmap: flags & UNMAP != 0 && rules.unmap,
    })
}
