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
        let mut index = 0;
        for _ in 0..len {
            let descriptor = table_entry(memory, table.addr().0, index)?;
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
    #[inline]
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
        let missing = push_range(memory, addr, len, iov);
        if let Some(addr) = missing {
            self.miss(memory, addr)?;
        }
        if !writable && missing.is_none() {
            self.readable_ranges = iov.as_slice().len();
        } else if writable && len > 0 {
            self.last_writable_mapped = missing.is_none();
        }
        Ok(())
    }

    /// Deals with a range that is not mapped at `addr`.
    #[cold]
    fn miss(&mut self, memory: &MemoryView, addr: u64) -> Result<(), ChainError> {
        if memory.was_removed(addr) {
            return Err(ChainError::Removed(addr));
        }
        self.fault = true;
        Ok(())
    }
}

/// Adds `len` bytes of guest memory to the list.
///
/// Returns the first address that is not mapped, if there is one. The list then holds the bytes before it.
#[inline(always)]
fn push_range(memory: &MemoryView, addr: u64, len: u64, iov: &mut IoVecs) -> Option<u64> {
    let pushed = push_piece(memory, addr, len, iov);
    if pushed == len {
        return None;
    }
    push_rest(memory, addr.wrapping_add(pushed), len - pushed, iov)
}

/// Adds what other regions than the first one hold of a range.
#[cold]
fn push_rest(memory: &MemoryView, mut addr: u64, mut left: u64, iov: &mut IoVecs) -> Option<u64> {
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

/// Copies entry `index` of an indirect table.
#[inline]
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
    use std::sync::Arc;

    use super::*;
    use crate::memory::{GuestMemory, RegionInfo, memfd};

    /// Two regions side by side, and one behind a gap of the same size.
    fn memory() -> GuestMemory {
        let table = [0, 0x1000, 0x3000].map(|guest| {
            let info = RegionInfo {
                guest,
                len: 0x1000,
                user: guest,
                file_offset: 0,
            };
            (info, memfd(c"region", 0x1000).unwrap())
        });
        GuestMemory::map(table).unwrap()
    }

    #[test]
    fn a_buffer_may_span_adjacent_regions() {
        let view = MemoryView::new(Arc::new(memory()));
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
            let mut iov = IoVecs::new();
            assert_eq!(
                push_range(&view, addr, len, &mut iov),
                missing,
                "{addr:#x} {len:#x}"
            );
            let piece =
                |range: &libc::iovec| (view.guest_address(range.iov_base.cast()).unwrap(), range.iov_len);
            let found: Vec<_> = iov.as_slice().iter().map(piece).collect();
            assert_eq!(found, pieces, "{addr:#x} {len:#x}");
        }
    }
}
