//! The meaning of a descriptor chain by VIRTIO 1.3 (2.7.5, 5.2.6), computed byte by byte in the simplest way.

use crate::guest::Image;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

pub const OK: u8 = 0;
pub const IOERR: u8 = 1;
pub const UNSUPP: u8 = 2;

/// The properties of the device and its queue.
#[derive(Clone, Debug)]
pub struct Device {
    /// Guest address of the descriptor table.
    pub table: u64,
    pub queue_size: u16,
    pub indirect: bool,
    pub capacity: u64,
    pub block_size: u64,
    pub read_only: bool,
    pub discard: bool,
    pub write_zeroes: bool,
    pub serial: [u8; 20],
    pub max_discard_sectors: u64,
    pub max_write_zeroes_sectors: u64,
    pub max_segments: usize,
}

/// The reason why a chain cannot be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    TooLong,
    BadNext,
    ReadableAfterWritable,
    UnexpectedIndirect,
    BadIndirectLength,
    IndirectNotMapped,
    NoStatus,
}

/// A chain's buffers, byte by byte.
#[derive(Clone, Debug, Default)]
pub struct Buffers {
    /// Guest addresses of the bytes that the device reads.
    pub readable: Vec<u64>,
    /// Guest addresses of the bytes that the device writes.
    pub writable: Vec<u64>,
    /// A byte is not in memory. The rest of its descriptor was skipped.
    pub fault: bool,
    /// The last byte that the device may write is in memory.
    pub last_is_mapped: bool,
}

/// The operation that a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    Read {
        offset: u64,
        into: Vec<u64>,
    },
    Write {
        offset: u64,
        from: Vec<u64>,
    },
    Flush,
    Discard(Vec<(u64, u64)>),
    /// Offset, length, and whether the space may be deallocated.
    WriteZeroes(Vec<(u64, u64, bool)>),
    /// Stores these bytes in guest memory and answers.
    Answer {
        status: u8,
        data: Vec<(u64, u8)>,
    },
}

/// The meaning of a chain that the device answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meaning {
    /// Guest address of the status byte.
    pub status_at: u64,
    pub operation: Operation,
}

#[derive(Clone, Copy)]
struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

fn number(image: &Image, at: u64, len: u64) -> Option<u64> {
    (0..len).try_fold(0, |sum, i| {
        let byte = image.byte(at.checked_add(i)?)?;
        Some(sum | u64::from(byte) << (8 * i))
    })
}

fn descriptor(image: &Image, at: u64) -> Option<Descriptor> {
    // An entry must lie in one region.
    let (first, last) = (Image::offset(at)?, Image::offset(at.checked_add(15)?)?);
    if last != first + 15 {
        return None;
    }
    Some(Descriptor {
        addr: number(image, at, 8)?,
        len: number(image, at + 8, 4)? as u32,
        flags: number(image, at + 12, 2)? as u16,
        next: number(image, at + 14, 2)? as u16,
    })
}

impl Buffers {
    fn add(&mut self, d: Descriptor) -> Result<(), Broken> {
        let list = if d.flags & WRITE != 0 {
            &mut self.writable
        } else {
            &mut self.readable
        };
        for i in 0..u64::from(d.len) {
            let at = d.addr.checked_add(i).filter(|&at| Image::offset(at).is_some());
            match at {
                Some(at) => list.push(at),
                None => self.fault = true,
            }
            if d.flags & WRITE != 0 {
                self.last_is_mapped = at.is_some();
            }
            if at.is_none() {
                break;
            }
        }
        Ok(())
    }
}

/// Maximum number of entries in an indirect table.
const MAX_TABLE: u32 = 1024;

/// Follows a chain from its head (2.7.5; indirect tables 2.7.5.3).
pub fn walk(device: &Device, image: &Image, head: u16) -> Result<Buffers, Broken> {
    let mut buffers = Buffers::default();
    let mut any_writable = false;
    let (mut table, mut entries, mut index) = (device.table, u32::from(device.queue_size), u32::from(head));
    let (mut seen, mut inside) = (0, false);
    loop {
        // A chain with more descriptors than its table has a loop.
        if seen == entries {
            return Err(Broken::TooLong);
        }
        seen += 1;
        let at = table
            .checked_add(u64::from(index) * 16)
            .ok_or(Broken::IndirectNotMapped)?;
        let d = descriptor(image, at).ok_or(Broken::IndirectNotMapped)?;
        if d.flags & INDIRECT != 0 {
            if inside || !device.indirect || d.flags & NEXT != 0 {
                return Err(Broken::UnexpectedIndirect);
            }
            if d.len == 0 || d.len % 16 != 0 || d.len / 16 > MAX_TABLE {
                return Err(Broken::BadIndirectLength);
            }
            (table, entries, index) = (d.addr, d.len / 16, 0);
            (seen, inside) = (0, true);
            continue;
        }
        // The direction of an empty writable buffer does not matter.
        if d.flags & WRITE == 0 && any_writable {
            return Err(Broken::ReadableAfterWritable);
        }
        any_writable |= d.flags & WRITE != 0 && d.len > 0;
        buffers.add(d)?;
        if d.flags & NEXT == 0 {
            return Ok(buffers);
        }
        index = u32::from(d.next);
        if index >= entries {
            return Err(Broken::BadNext);
        }
    }
}

/// Parses the request in a chain (5.2.6).
pub fn understand(device: &Device, image: &Image, mut buffers: Buffers) -> Result<Meaning, Broken> {
    // "The final byte is written by the device": it is the status.
    if !buffers.last_is_mapped {
        return Err(Broken::NoStatus);
    }
    let status_at = buffers.writable.pop().ok_or(Broken::NoStatus)?;
    let operation = match operation(device, image, &buffers) {
        Ok(operation) => operation,
        Err(status) => Operation::Answer {
            status,
            data: Vec::new(),
        },
    };
    Ok(Meaning { status_at, operation })
}

fn operation(device: &Device, image: &Image, buffers: &Buffers) -> Result<Operation, u8> {
    if buffers.fault || buffers.readable.len() < 16 {
        return Err(IOERR);
    }
    let bytes: Vec<u8> = buffers
        .readable
        .iter()
        .map(|&at| image.byte(at).expect("it was there"))
        .collect();
    let (header, payload) = bytes.split_at(16);
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |sum, &b| sum << 8 | u64::from(b));
    let (kind, sector) = (number(&header[..4]), number(&header[8..]));
    match kind {
        // VIRTIO_BLK_T_IN
        0 => {
            let offset = range(device, sector, buffers.writable.len() as u64)?;
            let into = buffers.writable.clone();
            Ok(Operation::Read { offset, into })
        }
        // A read-only device fails requests that would write (5.2.6.2).
        1 | 11 | 13 if device.read_only => Err(IOERR),
        // VIRTIO_BLK_T_OUT
        1 => {
            let offset = range(device, sector, payload.len() as u64)?;
            let from = buffers.readable[16..].to_vec();
            Ok(Operation::Write { offset, from })
        }
        // VIRTIO_BLK_T_FLUSH
        4 => Ok(Operation::Flush),
        // VIRTIO_BLK_T_GET_ID
        8 => Ok(Operation::Answer {
            status: OK,
            data: buffers.writable.iter().copied().zip(device.serial).collect(),
        }),
        // VIRTIO_BLK_T_DISCARD
        11 if device.discard => {
            let segments = segments(device, payload, device.max_discard_sectors, 0)?;
            Ok(Operation::Discard(
                segments.iter().map(|&(offset, len, _)| (offset, len)).collect(),
            ))
        }
        // VIRTIO_BLK_T_WRITE_ZEROES
        13 if device.write_zeroes => {
            let segments = segments(device, payload, device.max_write_zeroes_sectors, 1)?;
            Ok(Operation::WriteZeroes(segments))
        }
        _ => Err(UNSUPP),
    }
}

/// Returns the offset of a range on the disk. The range must consist of whole blocks.
fn range(device: &Device, sector: u64, len: u64) -> Result<u64, u8> {
    let (offset, len) = (u128::from(sector) * 512, u128::from(len));
    let block = u128::from(device.block_size);
    if offset % block != 0 || len % block != 0 || offset + len > u128::from(device.capacity) {
        return Err(IOERR);
    }
    u64::try_from(offset).map_err(|_| IOERR)
}

/// Parses an array of `struct virtio_blk_discard_write_zeroes`.
fn segments(
    device: &Device,
    payload: &[u8],
    max_sectors: u64,
    known_flags: u64,
) -> Result<Vec<(u64, u64, bool)>, u8> {
    if payload.is_empty() || !payload.len().is_multiple_of(16) || payload.len() / 16 > device.max_segments {
        return Err(IOERR);
    }
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |sum, &b| sum << 8 | u64::from(b));
    let segments: Vec<_> = payload
        .chunks(16)
        .map(|s| (number(&s[..8]), number(&s[8..12]), number(&s[12..])))
        .collect();
    // "MUST set the status byte to UNSUPP ... if any unknown flag is set" (5.2.6.2), before any other error.
    if segments.iter().any(|&(_, _, flags)| flags & !known_flags != 0) {
        return Err(UNSUPP);
    }
    let segment = |&(sector, sectors, flags): &(u64, u64, u64)| {
        if sectors > max_sectors {
            return Err(IOERR);
        }
        Ok((
            range(device, sector, sectors * 512)?,
            sectors * 512,
            flags & 1 != 0,
        ))
    };
    segments.iter().map(segment).collect()
}

impl Operation {
    /// Executes the operation on plain bytes. Returns the status and the number of data bytes written into the chain.
    pub fn execute(&self, disk: &mut [u8], image: &mut Image) -> (u8, u32) {
        let fill = |disk: &mut [u8], offset: u64, len: u64| {
            disk[offset as usize..(offset + len) as usize].fill(0);
        };
        match self {
            Self::Read { offset, into } => {
                for (at, &guest) in (*offset as usize..).zip(into) {
                    image.put(guest, disk[at]);
                }
                return (OK, into.len() as u32);
            }
            Self::Write { offset, from } => {
                for (at, &guest) in (*offset as usize..).zip(from) {
                    disk[at] = image.byte(guest).expect("it was there");
                }
            }
            Self::Flush => {}
            // Discarding makes a hole in the file, which reads as zeroes.
            Self::Discard(ranges) => ranges.iter().for_each(|&(offset, len)| fill(disk, offset, len)),
            Self::WriteZeroes(ranges) => ranges
                .iter()
                .for_each(|&(offset, len, _)| fill(disk, offset, len)),
            Self::Answer { status, data } => {
                data.iter().for_each(|&(guest, byte)| image.put(guest, byte));
                return (*status, data.len() as u32);
            }
        }
        (OK, 0)
    }
}
