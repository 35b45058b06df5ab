//! Scatter-gather lists of memory that the kernel reads and writes.
//!
//! Storage and engines see only these lists, not the guest. Guest memory never becomes a `&[u8]`, because the guest may
//! change it at any time. The kernel gets it as an iovec.

use std::ptr;

use smallvec::SmallVec;
use vm_memory::VolatileSlice;

use super::volatile::read_volatile_16;
use super::zero;
use crate::guard::{has_lost, losses};

/// The memory ranges of one I/O request, in order.
///
/// Up to eight ranges are stored in place. A recycled list keeps its capacity, so the request path does not allocate.
///
/// The list holds addresses, not references. The caller of [`IoVecs::push`] promises that the memory stays valid until
/// the list is cleared or dropped. In exchange, all readers of the list are safe code.
#[derive(Default, Debug)]
pub struct IoVecs {
    vecs: SmallVec<[IoVec; 8]>,
    /// Index of the first range that is still in the list. So removing ranges from the front moves nothing.
    first: usize,
    len: usize,
    /// Distance to subtract from an address to access it ourselves: see [`IoVecs::set_own_distance`].
    own_distance: usize,
}

/// One range; the layout of `struct iovec`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
struct IoVec(libc::iovec);

// SAFETY: an address and a length. The caller of `IoVecs::push` guarantees the memory, on every thread.
unsafe impl Send for IoVec {}
// SAFETY: as above; the struct has no interior mutability.
unsafe impl Sync for IoVec {}

impl IoVecs {
    /// Creates an empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends `len` bytes at `base`. An empty range is left out.
    ///
    /// # Safety
    /// Until this list is cleared or dropped, the range must stay mapped and writable (or readable, if the
    /// list is only a source), and no Rust reference to it may exist. The list's total length must stay below
    /// `isize::MAX`.
    pub unsafe fn push(&mut self, base: *mut u8, len: usize) {
        if len == 0 {
            return;
        }
        self.len += len;
        self.vecs.push(IoVec(libc::iovec {
            iov_base: base.cast(),
            iov_len: len,
        }));
    }

    /// Declares that the ranges are in the kernel's mapping, and that our own mapping of the same memory is `distance`
    /// bytes below (see `guard`).
    ///
    /// This holds until the list is cleared.
    ///
    /// # Safety
    /// The promise of [`IoVecs::push`] holds for the bytes in our own mapping as well.
    pub(crate) unsafe fn set_own_distance(&mut self, distance: usize) {
        self.own_distance = distance;
    }

    /// Returns the distance to subtract from an address to access it ourselves.
    pub(crate) fn own_distance(&self) -> usize {
        self.own_distance
    }

    /// Returns whether one of our own accesses has found some of the memory lost.
    pub(crate) fn has_lost(&self) -> bool {
        losses() > 0
            && self
                .as_slice()
                .iter()
                .any(|range| has_lost(own(range.iov_base, self.own_distance), range.iov_len))
    }

    /// Appends the ranges of `other`.
    ///
    /// # Safety
    /// The promise of [`IoVecs::push`] holds for the ranges of `other` until this list is cleared or dropped, too.
    pub(super) unsafe fn append(&mut self, other: &Self) {
        self.vecs.extend_from_slice(other.ranges());
        self.len += other.len;
        self.own_distance = other.own_distance;
    }

    /// Appends `len` bytes of `other` from byte `at` on, or fewer if `other` is shorter.
    ///
    /// # Safety
    /// As for [`IoVecs::append`].
    pub(super) unsafe fn append_part(&mut self, other: &Self, mut at: usize, mut len: usize) {
        self.own_distance = other.own_distance;
        for range in other.ranges() {
            let skipped = at.min(range.0.iov_len);
            let taken = (range.0.iov_len - skipped).min(len);
            // SAFETY: `skipped` is within the range; the caller guarantees the rest.
            unsafe { self.push(range.0.iov_base.cast::<u8>().add(skipped), taken) };
            (at, len) = (at - skipped, len - taken);
            if len == 0 {
                return;
            }
        }
    }

    /// Removes all ranges. The capacity stays.
    pub fn clear(&mut self) {
        self.vecs.clear();
        (self.first, self.len, self.own_distance) = (0, 0, 0);
    }

    /// Returns the number of bytes in all ranges.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the list has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the ranges for a system call.
    pub fn as_slice(&self) -> &[libc::iovec] {
        let vecs = self.ranges();
        // SAFETY: IoVec is repr(transparent) over libc::iovec.
        unsafe { std::slice::from_raw_parts(vecs.as_ptr().cast(), vecs.len()) }
    }

    fn ranges(&self) -> &[IoVec] {
        &self.vecs[self.first..]
    }

    /// Keeps only the first `ranges` ranges.
    pub fn truncate(&mut self, ranges: usize) {
        while self.ranges().len() > ranges
            && let Some(vec) = self.vecs.pop()
        {
            self.len -= vec.0.iov_len;
        }
    }

    /// Removes the first `ranges` ranges.
    pub fn skip_ranges(&mut self, ranges: usize) {
        self.len -= self.ranges()[..ranges].iter().map(|v| v.0.iov_len).sum::<usize>();
        self.first += ranges;
    }

    /// Returns the number of ranges that were removed from the front since the list was empty.
    #[inline]
    pub fn removed_ranges(&self) -> usize {
        self.first
    }

    /// Copies the first sixteen bytes, each once, and removes them from the list. This is a faster
    /// [`IoVecs::read_front`] for the usual case that one range has all of them.
    #[inline]
    pub fn read_front_16(&mut self) -> Option<[u8; 16]> {
        let Some(vec) = self.vecs.get_mut(self.first).filter(|vec| vec.0.iov_len >= 16) else {
            let mut buf = [0; 16];
            return self.read_front(&mut buf).then_some(buf);
        };
        // SAFETY: the range is valid (promised to `push`) for at least sixteen bytes.
        let bytes = unsafe { read_volatile_16(own(vec.0.iov_base, self.own_distance)) };
        // SAFETY: within the range, or right after it.
        vec.0.iov_base = unsafe { vec.0.iov_base.byte_add(16) };
        vec.0.iov_len -= 16;
        self.first += usize::from(vec.0.iov_len == 0);
        self.len -= 16;
        Some(bytes)
    }

    /// Copies the first `buf.len()` bytes, each once, and removes them from the list.
    ///
    /// Returns false and changes nothing if the list is shorter.
    pub fn read_front(&mut self, buf: &mut [u8]) -> bool {
        if self.len < buf.len() {
            return false;
        }
        let mut done = 0;
        while done < buf.len() {
            let vec = &mut self.vecs[self.first];
            let len = vec.0.iov_len.min(buf.len() - done);
            // SAFETY: the range is valid (promised to `push`), and all accesses to it are volatile.
            let slice = unsafe { VolatileSlice::new(own(vec.0.iov_base, self.own_distance), len) };
            slice.copy_to(&mut buf[done..done + len]);
            done += len;
            if len < vec.0.iov_len {
                // SAFETY: `len` is within the range.
                vec.0.iov_base = unsafe { vec.0.iov_base.byte_add(len) };
                vec.0.iov_len -= len;
                break;
            }
            self.first += 1;
        }
        self.len -= done;
        true
    }

    /// Copies as much of `data` as fits to the front of the list. Returns the number of bytes copied.
    pub fn write_front(&self, data: &[u8]) -> usize {
        let mut done = 0;
        for vec in self.ranges() {
            let len = vec.0.iov_len.min(data.len() - done);
            // SAFETY: as in `read_front`; the ranges of a list that is written to are writable.
            let slice = unsafe { VolatileSlice::new(own(vec.0.iov_base, self.own_distance), len) };
            slice.copy_from(&data[done..done + len]);
            done += len;
        }
        done
    }

    /// Copies `data` to the list from byte `at` on, as much as fits.
    pub(crate) fn write_at(&self, at: usize, data: &[u8]) {
        let mut done = 0;
        for range in self.part(at, data.len()) {
            // SAFETY: as in `read_front`; the ranges of a list that is written to are writable.
            let slice = unsafe { VolatileSlice::new(own(range.iov_base, self.own_distance), range.iov_len) };
            slice.copy_from(&data[done..done + range.iov_len]);
            done += range.iov_len;
        }
    }

    /// Copies bytes from byte `at` of the list on, each once. What is past the end of the list stays as it is.
    pub(crate) fn read_at(&self, at: usize, data: &mut [u8]) {
        let mut done = 0;
        for range in self.part(at, data.len()) {
            // SAFETY: as in `read_front`.
            let slice = unsafe { VolatileSlice::new(own(range.iov_base, self.own_distance), range.iov_len) };
            slice.copy_to(&mut data[done..done + range.iov_len]);
            done += range.iov_len;
        }
    }

    /// Fills `len` bytes from byte `at` on with zeroes, as far as the list goes.
    pub(crate) fn zero_at(&self, at: usize, len: usize) {
        for range in self.part(at, len) {
            // SAFETY: as in `write_at`.
            unsafe { ptr::write_bytes(own(range.iov_base, self.own_distance), 0, range.iov_len) };
        }
    }

    /// Returns the ranges of `len` bytes from byte `at` on, or of fewer if the list is shorter, for a system call.
    pub(crate) fn part(&self, at: usize, len: usize) -> impl Iterator<Item = libc::iovec> + '_ {
        let (mut skipped, mut left) = (at, len);
        self.as_slice().iter().filter_map(move |range| {
            let skip = skipped.min(range.iov_len);
            let taken = (range.iov_len - skip).min(left);
            (skipped, left) = (skipped - skip, left - taken);
            (taken > 0).then(|| libc::iovec {
                iov_base: range.iov_base.wrapping_byte_add(skip),
                iov_len: taken,
            })
        })
    }

    /// Fills all ranges with zeroes.
    pub fn write_zeroes(&self) {
        for vec in self.ranges() {
            // SAFETY: as in `write_front`.
            unsafe { ptr::write_bytes(own(vec.0.iov_base, self.own_distance), 0, vec.0.iov_len) };
        }
    }

    /// Returns whether all bytes are zero. Memory that is lost is not: it only reads as zeroes.
    pub(crate) fn is_zero(&self) -> bool {
        let is_zero = |range: &IoVec| {
            let base = own(range.0.iov_base, self.own_distance);
            // SAFETY: as in `read_front`.
            unsafe { zero::is_zero(base, range.0.iov_len) }
        };
        self.ranges().iter().all(is_zero) && !self.has_lost()
    }

    /// Removes the last byte from the list and returns the address at which we access it.
    #[inline]
    pub fn pop_last_byte(&mut self) -> Option<*mut u8> {
        let last = self.vecs[self.first..].last_mut()?;
        last.0.iov_len -= 1;
        self.len -= 1;
        let (base, len) = (own(last.0.iov_base, self.own_distance), last.0.iov_len);
        if len == 0 {
            self.vecs.pop();
        }
        // SAFETY: `len` is now the offset of the byte that was removed.
        Some(unsafe { base.add(len) })
    }

    /// Returns whether every range starts at a multiple of `base` and its length is a multiple of `len` (powers of
    /// two).
    pub fn is_aligned(&self, base: usize, len: usize) -> bool {
        self.ranges()
            .iter()
            .all(|v| v.0.iov_base.addr() & (base - 1) == 0 && v.0.iov_len & (len - 1) == 0)
    }
}

/// Returns the address at which we access a byte ourselves.
#[inline]
pub(crate) fn own(base: *mut libc::c_void, distance: usize) -> *mut u8 {
    match distance {
        0 => base.cast(),
        // The mapping's provenance is exposed (`memory`).
        _ => ptr::with_exposed_provenance_mut(base.addr().wrapping_sub(distance)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(ranges: &mut [Vec<u8>]) -> IoVecs {
        let mut iov = IoVecs::new();
        for range in ranges {
            // SAFETY: in each test the buffers outlive the list, and meanwhile only the list is used to access them.
            unsafe { iov.push(range.as_mut_ptr(), range.len()) };
        }
        iov
    }

    #[test]
    fn a_split_header_is_read_and_removed() {
        let mut ranges = [vec![1, 2, 3], vec![], vec![4], vec![5, 6, 7]];
        let mut iov = list(&mut ranges);
        let mut header = [0; 5];
        assert!(iov.read_front(&mut header));
        assert_eq!((header, iov.len(), iov.as_slice().len()), ([1, 2, 3, 4, 5], 2, 1));
        assert!(!iov.read_front(&mut [0; 3]));
        assert_eq!(iov.read_front_16(), None);
        assert!(iov.read_front(&mut header[..2]) && iov.is_empty());
        assert_eq!(header[..2], [6, 7]);
    }

    #[test]
    fn a_header_is_read_wherever_it_lies() {
        let bytes: Vec<u8> = (0..20).collect();
        for cut in 0..=20 {
            let mut ranges = [bytes[..cut].to_vec(), bytes[cut..].to_vec()];
            let mut iov = list(&mut ranges);
            assert_eq!(iov.read_front_16().unwrap(), bytes[..16], "{cut}");
            assert_eq!(
                (iov.len(), iov.as_slice().len()),
                (4, 1 + usize::from((17..20).contains(&cut)))
            );
            let mut rest = [0; 4];
            assert!(iov.read_front(&mut rest) && rest == bytes[16..], "{cut}");
        }
    }

    #[test]
    fn the_last_byte_is_removed_from_any_range() {
        let mut ranges = [vec![0; 4], vec![0; 1]];
        let ends = [ranges[1].as_ptr(), ranges[0][3..].as_ptr()];
        let mut iov = list(&mut ranges);
        assert_eq!(iov.pop_last_byte().map(<*mut u8>::cast_const), Some(ends[0]));
        assert_eq!(iov.pop_last_byte().map(<*mut u8>::cast_const), Some(ends[1]));
        assert_eq!((iov.len(), iov.as_slice().len()), (3, 1));
        assert_eq!(IoVecs::new().pop_last_byte(), None);
    }

    #[test]
    fn a_part_is_written_wherever_it_lies() {
        for at in 0..7 {
            for len in 0..7 {
                let mut ranges = [vec![1; 2], vec![1; 3], vec![1; 1]];
                let iov = list(&mut ranges);
                let part: usize = iov.part(at, len).map(|range| range.iov_len).sum();
                assert_eq!(part, len.min(6_usize.saturating_sub(at)));
                iov.write_at(at, &vec![2; len]);
                let mut copy = vec![9; len];
                iov.read_at(at, &mut copy);
                assert!(
                    copy[..part].iter().all(|byte| *byte == 2) && copy[part..].iter().all(|byte| *byte == 9)
                );
                iov.zero_at(at + 1, len.saturating_sub(1));
                let expected: Vec<u8> = (0..6)
                    .map(|i| match i {
                        i if i == at && len > 0 => 2,
                        i if i > at && i < at + len => 0,
                        _ => 1,
                    })
                    .collect();
                assert_eq!(ranges.concat(), expected, "{at} {len}");
            }
        }
    }

    #[test]
    fn data_fills_ranges_until_they_are_full() {
        let mut ranges = [vec![0; 2], vec![0; 2]];
        assert_eq!(list(&mut ranges).write_front(&[1, 2, 3]), 3);
        assert_eq!(list(&mut ranges).write_front(&[4, 5, 6, 7, 8]), 4);
        assert_eq!(ranges, [vec![4, 5], vec![6, 7]]);
    }
}
