//! Requests as a driver lays them out, and defects in them.

use arbitrary::Arbitrary;

use crate::guest::{APART, HIGH, NEXT_TO_IT, REGIONS};

/// Guest addresses of the ring's parts. Queues have 32 entries at most.
pub const DESC: u64 = 0;
pub const AVAIL: u64 = 0x800;
pub const USED: u64 = 0xa00;
/// Guest address at which buffers begin.
pub const HEAP: u64 = 0x1000;

#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Kind {
    In,
    Out,
    Flush,
    GetId,
    Discard,
    WriteZeroes,
    Other(u32),
}

impl Kind {
    fn number(self) -> u32 {
        match self {
            Self::In => 0,
            Self::Out => 1,
            Self::Flush => 4,
            Self::GetId => 8,
            Self::Discard => 11,
            Self::WriteZeroes => 13,
            Self::Other(number) => number,
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Number {
    Small(u8),
    Any(u64),
}

impl Number {
    fn get(self) -> u64 {
        match self {
            Self::Small(n) => n.into(),
            Self::Any(n) => n,
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Length {
    Sectors(u8),
    Bytes(u16),
}

impl Length {
    fn get(self) -> usize {
        match self {
            Self::Sectors(n) => usize::from(n % 17) * 512,
            Self::Bytes(n) => usize::from(n % 9000),
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Segment {
    sector: Number,
    sectors: Number,
    flags: u8,
}

/// An address that is likely to reach an interesting case.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Addr {
    Heap(u16),
    /// A region, and a number of bytes before its end.
    End(u8, u8),
    Any(u64),
}

impl Addr {
    /// Returns the address. It lies in the page of the rings only if it is [`Addr::Any`].
    pub fn get(self) -> u64 {
        match self {
            Self::Heap(at) => HEAP + u64::from(at) % (NEXT_TO_IT.guest + NEXT_TO_IT.len - HEAP),
            Self::End(region, back) => {
                let region = REGIONS[usize::from(region) % REGIONS.len()];
                region.guest + region.len - u64::from(back)
            }
            Self::Any(at) => at,
        }
    }
}

/// A defect: a store that a well-behaved driver would not make.
#[derive(Arbitrary, Clone, Debug)]
pub enum Change {
    /// Replaces a descriptor of the queue's table.
    Descriptor {
        index: u8,
        addr: Addr,
        len: u32,
        flags: u8,
        next: u8,
    },
    /// Stores a descriptor in another table.
    Entry {
        table: Addr,
        index: u8,
        addr: Addr,
        len: u16,
        flags: u8,
        next: u8,
    },
    /// Replaces a descriptor by one that names an indirect table.
    Table {
        index: u8,
        table: Addr,
        len: u16,
        flags: u8,
    },
    Address {
        index: u8,
        addr: Addr,
    },
    Flags {
        index: u8,
        flags: u8,
    },
    Bytes(Addr, [u8; 4]),
}

#[derive(Arbitrary, Clone, Debug)]
pub struct Request {
    kind: Kind,
    sector: Number,
    length: Length,
    /// The pattern of the data to write.
    fill: u8,
    segments: Vec<Segment>,
    /// The positions at which buffers are cut into descriptors.
    cuts: [u8; 4],
    /// The number of descriptors before the indirect table, if there is a table.
    indirect: Option<u8>,
    /// The place of the buffers in the heap, unless `high` puts them at the highest addresses.
    at: u8,
    high: bool,
    pub head: u8,
    pub changes: Vec<Change>,
}

/// Stores bytes at a guest address.
pub type Store<'a> = &'a mut dyn FnMut(u64, &[u8]);

struct Piece {
    addr: u64,
    len: u32,
    writable: bool,
}

/// Returns the bytes of a descriptor.
pub fn descriptor(addr: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let desc = testkit::ring::Desc {
        addr,
        len,
        flags,
        next,
    };
    desc.bytes()
}

impl Request {
    /// Returns the bytes that the device reads.
    fn readable(&self) -> Vec<u8> {
        let mut bytes = self.kind.number().to_le_bytes().to_vec();
        bytes.extend([0x77; 4]);
        bytes.extend(self.sector.get().to_le_bytes());
        match self.kind {
            Kind::Out | Kind::Other(_) => {
                bytes.extend((0..self.length.get()).map(|i| self.fill ^ (i as u8) ^ ((i >> 8) as u8)));
            }
            Kind::Discard | Kind::WriteZeroes => {
                for s in self.segments.iter().take(40) {
                    bytes.extend(s.sector.get().to_le_bytes());
                    bytes.extend((s.sectors.get() as u32).to_le_bytes());
                    bytes.extend(u32::from(s.flags).to_le_bytes());
                }
            }
            Kind::In | Kind::Flush | Kind::GetId => {}
        }
        bytes
    }

    fn writable(&self) -> usize {
        match self.kind {
            Kind::In | Kind::GetId => self.length.get() + 1,
            _ => 1,
        }
    }

    fn pieces(&self, store: Store<'_>) -> Vec<Piece> {
        let readable = self.readable();
        let (mut pieces, mut rest) = (Vec::new(), readable.as_slice());
        let mut at = if self.high {
            HIGH.guest
        } else {
            HEAP + u64::from(self.at) * 64
        };
        let cut = |len: usize, cut: u8| usize::from(cut) * 131 % (len + 1);
        let first = cut(readable.len(), self.cuts[0]);
        for len in [first, cut(readable.len() - first, self.cuts[1]), usize::MAX] {
            let (piece, others) = rest.split_at(len.min(rest.len()));
            rest = others;
            place(&mut pieces, &mut at, piece.len(), false);
            store(pieces.last().map_or(0, |p| p.addr), piece);
        }
        let (len, first) = (self.writable(), cut(self.writable(), self.cuts[2]));
        let second = cut(len - first, self.cuts[3]);
        for len in [first, second, len - first - second] {
            place(&mut pieces, &mut at, len, true);
        }
        pieces
    }

    /// Stores the request, then its changes, for a queue of `size` entries. Returns the chain's head.
    pub fn store(&self, size: u16, store: Store<'_>) -> u16 {
        let head = u16::from(self.head) % size;
        let pieces = self.pieces(store);
        let direct = self
            .indirect
            .map_or(pieces.len(), |n| usize::from(n) % (pieces.len() + 1));
        let index = |i: usize| (head + i as u16) % size;
        for (i, piece) in pieces[..direct].iter().enumerate() {
            let next = u16::from(i + 1 < direct || self.indirect.is_some());
            let flags = next | u16::from(piece.writable) << 1;
            let bytes = descriptor(piece.addr, piece.len, flags, index(i + 1));
            store(DESC + 16 * u64::from(index(i)), &bytes);
        }
        if self.indirect.is_some() {
            let table = APART.guest + 16 * u64::from(self.at);
            for (i, piece) in pieces[direct..].iter().enumerate() {
                let next = u16::from(direct + i + 1 < pieces.len());
                let flags = next | u16::from(piece.writable) << 1;
                let bytes = descriptor(piece.addr, piece.len, flags, i as u16 + 1);
                store(table + 16 * i as u64, &bytes);
            }
            let len = 16 * (pieces.len() - direct) as u32;
            store(
                DESC + 16 * u64::from(index(direct)),
                &descriptor(table, len, 4, 0xdead),
            );
        }
        for change in self.changes.iter().take(8) {
            change.store(size, store);
        }
        head
    }
}

/// Places a buffer after the previous one, or in another region if there is no room.
fn place(pieces: &mut Vec<Piece>, at: &mut u64, len: usize, writable: bool) {
    let room = |region: &vhost_user_blk::memory::RegionInfo| {
        *at >= region.guest && *at - region.guest + len as u64 <= region.len
    };
    // The first two regions adjoin each other, so a buffer may lie in both.
    let adjoining = *at >= HEAP && *at + len as u64 <= NEXT_TO_IT.guest + NEXT_TO_IT.len;
    if !adjoining && !REGIONS.iter().any(room) {
        *at = APART.guest + 0x1000;
    }
    pieces.push(Piece {
        addr: *at,
        len: len as u32,
        writable,
    });
    *at += len as u64;
}

impl Change {
    fn store(&self, size: u16, store: Store<'_>) {
        let entry = |index: u8| DESC + 16 * u64::from(u16::from(index) % size);
        match *self {
            Self::Descriptor {
                index,
                addr,
                len,
                flags,
                next,
            } => {
                let bytes = descriptor(addr.get(), len, u16::from(flags & 7), next.into());
                store(entry(index), &bytes);
            }
            Self::Entry {
                table,
                index,
                addr,
                len,
                flags,
                next,
            } => {
                let bytes = descriptor(addr.get(), len.into(), u16::from(flags & 7), next.into());
                store(table.get().wrapping_add(16 * u64::from(index % 40)), &bytes);
            }
            Self::Table {
                index,
                table,
                len,
                flags,
            } => {
                let bytes = descriptor(table.get(), len.into(), 4 | u16::from(flags & 3), 0);
                store(entry(index), &bytes);
            }
            Self::Address { index, addr } => store(entry(index), &addr.get().to_le_bytes()),
            Self::Flags { index, flags } => store(entry(index) + 12, &[flags & 7]),
            Self::Bytes(at, bytes) => store(at.get(), &bytes),
        }
    }
}
