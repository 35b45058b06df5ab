//! Descriptor chains (VIRTIO 1.3, 2.7.5).
//!
//! Each descriptor is copied once, and a walk never visits more descriptors than the queue or the indirect table has.

use virtio_queue::desc::split::Descriptor;

use super::ring::{MAX_QUEUE_SIZE, SplitRing, read_descriptor};
use crate::io::{IoVecs, own};
use crate::memory::MemoryView;

const INDIRECT: u16 = 4; // VIRTQ_DESC_F_INDIRECT

/// Maximum number of entries in an indirect table, as in QEMU. A table should not be longer than its queue
/// (2.7.5.3.1), but Linux makes tables as long as the request needs.
const MAX_TABLE: u16 = MAX_QUEUE_SIZE;

/// The reason why a chain cannot be walked. Its ring must stop, or wait for [`ChainError::Removed`] memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// The chain is longer than the queue or the table: it has a loop.
    #[error("descriptor chain has more than {0} descriptors")]
    TooLong(u16),
    /// A descriptor's `next` is past the end of the table.
    #[error("descriptor index {next} is past the end of the table ({len} entries)")]
    BadNext {
        /// The invalid index.
        next: u16,
        /// Entries in the table.
        len: u16,
    },
    /// A device-readable descriptor follows a device-writable one (2.7.4.2).
    #[error("device-readable descriptor follows a device-writable one")]
    ReadableAfterWritable,
    /// An indirect descriptor was not negotiated, is nested, or has NEXT set (2.7.5.3.1).
    #[error("indirect descriptor is not negotiated, is nested, or has NEXT set")]
    UnexpectedIndirect,
    /// An indirect table is empty, has more than 1024 entries, or ends within a descriptor.
    #[error("indirect table has an invalid length of {0} bytes")]
    BadIndirectLength(u32),
    /// An indirect table is outside guest memory.
    #[error("indirect table at {0:#x} is not in guest memory")]
    IndirectNotMapped(u64),
    /// The chain uses memory that the frontend has taken away, and may give back.
    #[error("guest memory at {0:#x} was removed from the memory table")]
    Removed(u64),
}

/// The result of a walk. The ranges themselves are in the caller's list, readable ones first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Number of ranges at the front of the list that the device may only read.
    pub readable_ranges: usize,
    /// Number of bytes that the device may only read.
    pub readable: u64,
    /// Number of bytes that the device may write.
    pub writable: u64,
    /// True if a range was outside guest memory and is not in the list: the chain can be answered, but not executed.
    pub fault: bool,
    /// True if the last writable byte is in the list.
    pub last_writable_mapped: bool,
}

impl Chain {
    /// Walks the chain that starts at `head`, and appends its ranges to the empty list `iov`.
    ///
    /// The ranges stay valid as long as `memory` lives.
    ///
    /// # Errors
    /// The chain breaks the rules of the ring.
    pub fn walk(
        ring: &SplitRing,
        memory: &MemoryView,
        head: u16,
        iov: &mut IoVecs,
    ) -> Result<Self, ChainError> {
        // SAFETY: all ranges come from `memory`, and are mapped for us as well.
        unsafe { iov.set_own_distance(memory.own_distance()) };
        let mut chain = Self::default();
        let mut index = head;
        for _ in 0..ring.size() {
            let descriptor = ring.descriptor(index);
            if descriptor.flags() & INDIRECT != 0 {
                chain.walk_indirect(ring, memory, descriptor, iov)?;
                return Ok(chain);
            }
            chain.add(memory, descriptor, iov)?;
            if !descriptor.has_next() {
                return Ok(chain);
            }
            index = descriptor.next();
            if index >= ring.size() {
                return Err(ChainError::BadNext {
                    next: index,
                    len: ring.size(),
                });
            }
        }
        Err(ChainError::TooLong(ring.size()))
    }

    // Not inlined: a walk without an indirect table should not pay for the registers that this needs.
    #[inline(never)]
    fn walk_indirect(
        &mut self,
        ring: &SplitRing,
        memory: &MemoryView,
        table: Descriptor,
        iov: &mut IoVecs,
    ) -> Result<(), ChainError> {
        if !ring.features().indirect || table.has_next() {
            return Err(ChainError::UnexpectedIndirect);
        }
        let bad_length = ChainError::BadIndirectLength(table.len());
        let len = u16::try_from(table.len() / 16).map_err(|_| bad_length)?;
        if !table.len().is_multiple_of(16) || len == 0 || len > MAX_TABLE {
            return Err(bad_length);
        }
        let whole = whole_table(memory, table);
        let mut index = 0;
        for _ in 0..len {
            let descriptor = match whole {
                // SAFETY: the table has `len` entries, and `index` is below that.
                Some(first) => unsafe { read_descriptor(first.add(16 * usize::from(index))) },
                None => table_entry(memory, table.addr().0, index)?,
            };
            if descriptor.flags() & INDIRECT != 0 {
                return Err(ChainError::UnexpectedIndirect);
            }
            self.add(memory, descriptor, iov)?;
            if !descriptor.has_next() {
                return Ok(());
            }
            index = descriptor.next();
            if index >= len {
                return Err(ChainError::BadNext { next: index, len });
            }
        }
        Err(ChainError::TooLong(len))
    }

    /// Adds the buffer of one descriptor, which may span adjacent regions.
    ///
    /// Always inlined: without that, a walk takes a quarter more instructions.
    #[inline(always)]
    fn add(
        &mut self,
        memory: &MemoryView,
        descriptor: Descriptor,
        iov: &mut IoVecs,
    ) -> Result<(), ChainError> {
        let (addr, len) = (descriptor.addr().0, u64::from(descriptor.len()));
        let writable = descriptor.is_write_only();
        if writable {
            self.writable += len;
        } else if self.writable > 0 {
            return Err(ChainError::ReadableAfterWritable);
        } else {
            self.readable += len;
        }
        let pushed = push_piece(memory, addr, len, iov);
        let mapped = pushed == len || self.add_rest(memory, addr.wrapping_add(pushed), len - pushed, iov)?;
        if !writable && mapped {
            self.readable_ranges = iov.as_slice().len();
        } else if writable && len > 0 {
            self.last_writable_mapped = mapped;
        }
        Ok(())
    }

    /// Adds the rest of a buffer that continues after the end of a region. Returns whether all of it is mapped.
    #[cold]
    fn add_rest(
        &mut self,
        memory: &MemoryView,
        addr: u64,
        len: u64,
        iov: &mut IoVecs,
    ) -> Result<bool, ChainError> {
        let Some(missing) = push_pieces(memory, addr, len, iov) else {
            return Ok(true);
        };
        if memory.was_removed(missing) {
            return Err(ChainError::Removed(missing));
        }
        self.fault = true;
        Ok(false)
    }
}

/// Adds `left` bytes of guest memory to the list.
///
/// Returns the first address that is not mapped, if there is one. The list then holds the bytes before it.
fn push_pieces(memory: &MemoryView, mut addr: u64, mut left: u64, iov: &mut IoVecs) -> Option<u64> {
    while left > 0 {
        let pushed = push_piece(memory, addr, left, iov);
        if pushed == 0 {
            return Some(addr);
        }
        left -= pushed;
        // A region ends at or below 2^64, so this can only wrap when nothing is left or nothing follows.
        addr = addr.wrapping_add(pushed);
    }
    None
}

/// Adds the bytes of a range that the region at `addr` holds. Returns their number: 0 if no region is there.
#[inline]
fn push_piece(memory: &MemoryView, addr: u64, len: u64, iov: &mut IoVecs) -> u64 {
    let Some((base, contiguous)) = memory.resolve(addr) else {
        return 0;
    };
    let len = len.min(contiguous);
    #[allow(clippy::cast_possible_truncation, reason = "below the length of a mapping")]
    // SAFETY: `len` bytes at `base` lie in one mapping, which `memory` keeps alive.
    unsafe {
        iov.push(base, len as usize);
    }
    len
}

/// Returns the address at which we access an indirect table, if one region holds all of it.
#[inline]
fn whole_table(memory: &MemoryView, table: Descriptor) -> Option<*const u8> {
    let (first, left) = memory.resolve(table.addr().0)?;
    (left >= u64::from(table.len())).then(|| own(first.cast(), memory.own_distance()).cast_const())
}

/// Copies entry `index` of an indirect table that lies in several regions.
#[cold]
fn table_entry(memory: &MemoryView, table: u64, index: u16) -> Result<Descriptor, ChainError> {
    let not_mapped = ChainError::IndirectNotMapped(table);
    let addr = table.checked_add(16 * u64::from(index)).ok_or(not_mapped)?;
    match memory.resolve(addr) {
        Some((ptr, left)) if left >= 16 => {
            let ptr = own(ptr.cast(), memory.own_distance());
            // SAFETY: at least sixteen bytes are left in the region.
            Ok(unsafe { read_descriptor(ptr) })
        }
        Some((_, left)) => Err(missing(memory, addr.wrapping_add(left), not_mapped)),
        None => Err(missing(memory, addr, not_mapped)),
    }
}

/// The error for an address that is not mapped: it may have been removed.
#[cold]
fn missing(memory: &MemoryView, addr: u64, never_mapped: ChainError) -> ChainError {
    match memory.was_removed(addr) {
        true => ChainError::Removed(addr),
        false => never_mapped,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    use super::*;
    use crate::memory::{GuestMemory, RegionInfo, memfd};
    use crate::virtqueue::{RingAddresses, RingFeatures};

    /// Two adjacent regions, and a third after a gap of the same size, on the pages of one file.
    fn memory() -> (File, GuestMemory) {
        let file = memfd(c"memory", 0x4000).unwrap();
        let table = [0, 0x1000, 0x3000].map(|guest| {
            let info = RegionInfo {
                guest,
                len: 0x1000,
                user: guest,
                file_offset: guest,
            };
            (info, file.try_clone().unwrap())
        });
        (file, GuestMemory::map(table).unwrap())
    }

    #[test]
    fn a_buffer_may_span_adjacent_regions() {
        let view = MemoryView::new(Arc::new(memory().1));
        for (addr, len, missing, pieces) in [
            (0xff0, 0x10, None, &[(0xff0, 0x10)][..]),
            (0xff0, 0x11, None, &[(0xff0, 0x10), (0x1000, 1)]),
            (0, 0x2000, None, &[(0, 0x1000), (0x1000, 0x1000)]),
            (0xfff, 0x1002, Some(0x2000), &[(0xfff, 1), (0x1000, 0x1000)]),
            (0x1fff, 0x1002, Some(0x2000), &[(0x1fff, 1)]),
            (0x2000, 1, Some(0x2000), &[]),
            (0x2000, 0, None, &[]),
            (u64::MAX, 2, Some(u64::MAX), &[]),
        ] {
            let (mut chain, mut iov) = (Chain::default(), IoVecs::new());
            let buffer = Descriptor::new(addr, len, 0, 0);
            chain.add(&view, buffer, &mut iov).unwrap();
            assert_eq!(chain.fault, missing.is_some(), "{addr:#x} {len:#x}");
            let found = push_pieces(&view, addr, len.into(), &mut IoVecs::new());
            assert_eq!(found, missing, "{addr:#x} {len:#x}");
            let piece =
                |range: &libc::iovec| (view.guest_address(range.iov_base.cast()).unwrap(), range.iov_len);
            let found: Vec<_> = iov.as_slice().iter().map(piece).collect();
            assert_eq!(found, pieces, "{addr:#x} {len:#x}");
        }
    }

    /// A ring of 8 descriptors at the start of guest memory.
    fn ring(memory: &GuestMemory) -> SplitRing {
        let addresses = RingAddresses {
            desc: 0,
            avail: 0x400,
            used: 0x800,
        };
        let features = RingFeatures {
            event_idx: false,
            indirect: true,
        };
        SplitRing::new(memory, addresses, 8, 0, features).unwrap()
    }

    fn desc(addr: u64, len: u32, flags: u16, next: u16) -> Vec<u8> {
        let (len, flags, next) = (len.to_le_bytes(), flags.to_le_bytes(), next.to_le_bytes());
        [&addr.to_le_bytes()[..], &len, &flags, &next].concat()
    }

    /// Walks a chain of one, two and four readable bytes in an indirect table of `entries` at `at`, cut after `used`
    /// entries. Returns the number of readable bytes.
    fn walk_table(at: u64, entries: u32, used: u16) -> Result<u64, ChainError> {
        let (file, memory) = memory();
        let (ring, view) = (ring(&memory), MemoryView::new(Arc::new(memory)));
        file.write_all_at(&desc(at, 16 * entries, INDIRECT, 0), 0)
            .unwrap();
        for entry in 0..used {
            let more = u16::from(entry + 1 < used);
            let bytes = desc(0x100, 1 << entry, more, entry + 1);
            file.write_all_at(&bytes, at + 16 * u64::from(entry)).unwrap();
        }
        Chain::walk(&ring, &view, 0, &mut IoVecs::new()).map(|chain| chain.readable)
    }

    #[test]
    fn an_indirect_table_may_span_adjacent_regions() {
        for at in [0xfc0, 0xfd0, 0xfe0, 0xff0, 0x1000, 0x1fd0, 0x3000] {
            assert_eq!(walk_table(at, 3, 3), Ok(7), "{at:#x}");
        }
        // An entry that is cut by the end of a region, or not mapped.
        for at in [0xff8, 0x1fe0, 0x1ff8, 0x2000] {
            let error = Err(ChainError::IndirectNotMapped(at));
            assert_eq!(walk_table(at, 3, 3), error, "{at:#x}");
        }
        assert_eq!(
            walk_table(0x1fe0, 3, 2),
            Ok(3),
            "entries that are not used need not be mapped"
        );
    }
}
