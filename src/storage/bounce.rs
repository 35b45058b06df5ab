//! Bounce buffers: O_DIRECT for guest buffers that are not aligned as the kernel requires.
//!
//! Only here is guest memory copied on behalf of the storage. A request that needs no bounce buffer is not copied.

use std::alloc::{self, Layout};
use std::io;

use super::transfer::{retry, transfer};
use crate::io::{IoVecs, own};

/// Size of the pieces in which a salvage reads, in bytes, unless the storage requires larger ones.
const SALVAGE_PIECE: usize = 4096;

/// Maximum size of a bounce buffer, a multiple of every request alignment. Longer requests are transferred in pieces.
const BOUNCE_MAX: usize = 1 << 20;

/// Fills `iov` through an aligned buffer. `read` is as in [`transfer`].
pub(super) fn read(
    iov: &IoVecs,
    offset: u64,
    align: usize,
    mut read: impl FnMut(&[libc::iovec], u64) -> io::Result<usize>,
) -> io::Result<()> {
    pieces(iov, offset, align, |buffer, cursor, len, at| {
        transfer(&buffer.range(len), at, io::ErrorKind::UnexpectedEof, &mut read)?;
        cursor.each(len, |done, guest, n| {
            // SAFETY: `done + n <= len`, and `read` has filled `len` bytes of the buffer. `guest` is a range of the
            // list, whose owner guarantees it. Accesses by the guest at the same time can only spoil the guest's own
            // data.
            unsafe { std::ptr::copy_nonoverlapping(buffer.base.add(done), guest, n) }
        });
        check(iov)
    })
}

/// Fails if memory was lost before it was copied: the copy has zeroes in its place.
fn check(iov: &IoVecs) -> io::Result<()> {
    match iov.has_lost() {
        false => Ok(()),
        true => Err(io::Error::from_raw_os_error(libc::EFAULT)),
    }
}

/// Writes `iov` through an aligned buffer. `write` is as in [`transfer`].
pub(super) fn write(
    iov: &IoVecs,
    offset: u64,
    align: usize,
    mut write: impl FnMut(&[libc::iovec], u64) -> io::Result<usize>,
) -> io::Result<()> {
    pieces(iov, offset, align, |buffer, cursor, len, at| {
        cursor.each(len, |done, guest, n| {
            // SAFETY: as in `read`, in the other direction.
            unsafe { std::ptr::copy_nonoverlapping(guest, buffer.base.add(done), n) }
        });
        check(iov)?;
        transfer(&buffer.range(len), at, io::ErrorKind::WriteZero, &mut write)
    })
}

/// Fills `iov` piece by piece with the data that can be read, and with zeroes in place of the rest.
///
/// # Errors
/// EFAULT: the memory itself is lost.
pub(super) fn salvage(
    iov: &IoVecs,
    offset: u64,
    align: usize,
    read: impl Fn(&[libc::iovec], u64) -> io::Result<usize>,
) -> io::Result<()> {
    // Pieces start at multiples of their size, so that none covers parts of two blocks of the disk.
    let size = SALVAGE_PIECE.max(align);
    let mut left = iov.len();
    let (mut cursor, mut at) = (Cursor::new(iov), offset);
    let buffer = AlignedBuffer::new(size, align);
    while left > 0 {
        let before = usize::try_from(at % size as u64).expect("below the size of a piece");
        let len = (size - before).min(left);
        let filled = match &buffer {
            Ok(buffer) => read_prefix(buffer, len, at, &read),
            _ => 0,
        };
        cursor.each(len, |done, guest, n| {
            let good = filled.saturating_sub(done).min(n);
            if let Ok(buffer) = &buffer
                && good > 0
            {
                // SAFETY: the buffer holds `filled` bytes that were read, and `guest` is as in `read`.
                unsafe { std::ptr::copy_nonoverlapping(buffer.base.add(done), guest, good) };
            }
            // SAFETY: the rest of the same range.
            unsafe { std::ptr::write_bytes(guest.add(good), 0, n - good) };
        });
        left -= len;
        at += len as u64;
    }
    check(iov)
}

/// Reads up to the first error or the end of the file. Returns the number of bytes read.
fn read_prefix(
    buffer: &AlignedBuffer,
    len: usize,
    at: u64,
    read: impl Fn(&[libc::iovec], u64) -> io::Result<usize>,
) -> usize {
    let mut filled = 0;
    while filled < len {
        let rest = [libc::iovec {
            iov_base: buffer.base.wrapping_add(filled).cast(),
            iov_len: len - filled,
        }];
        match retry(|| read(&rest, at + filled as u64)) {
            Ok(moved) if moved > 0 => filled += moved,
            _ => break,
        }
    }
    filled
}

/// Calls `piece(buffer, cursor, length, offset)` for each piece of `iov`, in order.
fn pieces(
    iov: &IoVecs,
    mut offset: u64,
    align: usize,
    mut piece: impl FnMut(&AlignedBuffer, &mut Cursor<'_>, usize, u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut left = iov.len();
    let buffer = AlignedBuffer::new(left.min(BOUNCE_MAX), align)?;
    let mut cursor = Cursor::new(iov);
    while left > 0 {
        let len = left.min(BOUNCE_MAX);
        piece(&buffer, &mut cursor, len, offset)?;
        offset += len as u64;
        left -= len;
    }
    Ok(())
}

/// A position in a list of ranges.
struct Cursor<'a> {
    iov: &'a [libc::iovec],
    /// Number of bytes of the first range that the cursor has passed.
    skip: usize,
    own_distance: usize,
}

impl<'a> Cursor<'a> {
    fn new(iov: &'a IoVecs) -> Self {
        Self {
            iov: iov.as_slice(),
            skip: 0,
            own_distance: iov.own_distance(),
        }
    }

    /// Advances by `len` bytes, and calls `visit(bytes before, address, length)` for each contiguous part, with the
    /// address at which we access it ourselves.
    fn each(&mut self, len: usize, mut visit: impl FnMut(usize, *mut u8, usize)) {
        let mut done = 0;
        while done < len {
            let Some(first) = self.iov.first() else { return };
            let part = (first.iov_len - self.skip).min(len - done);
            let base = own(first.iov_base, self.own_distance);
            visit(done, base.wrapping_add(self.skip), part);
            done += part;
            self.skip += part;
            if self.skip == first.iov_len {
                self.iov = &self.iov[1..];
                self.skip = 0;
            }
        }
    }
}

/// Uninitialised memory with a given alignment.
#[derive(Debug)]
pub(super) struct AlignedBuffer {
    base: *mut u8,
    layout: Layout,
}

impl AlignedBuffer {
    /// Allocates `len` bytes, and at least one. `align` is a power of two.
    pub(super) fn new(len: usize, align: usize) -> io::Result<Self> {
        let layout = Layout::from_size_align(len.max(1), align)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: the size is not zero.
        let base = unsafe { alloc::alloc(layout) };
        if base.is_null() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok(Self { base, layout })
    }

    /// Returns the first `len` bytes as a list of one range.
    pub(super) fn range(&self, len: usize) -> [libc::iovec; 1] {
        debug_assert!(len <= self.layout.size());
        [libc::iovec {
            iov_base: self.base.cast(),
            iov_len: len,
        }]
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and freed only here.
        unsafe { alloc::dealloc(self.base, self.layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(parts: &mut [Vec<u8>]) -> IoVecs {
        let mut iov = IoVecs::new();
        for part in parts {
            // SAFETY: the parts outlive the list in each test.
            unsafe { iov.push(part.as_mut_ptr(), part.len()) };
        }
        iov
    }

    /// Returns the byte at offset `n` of a disk.
    fn pattern(n: u64) -> u8 {
        n.wrapping_mul(31).to_le_bytes()[0] ^ n.to_le_bytes()[1]
    }

    /// Acts as `preadv` of at most `most` bytes into the bounce buffer.
    fn fill(iov: &[libc::iovec], at: u64, align: usize, most: usize) -> usize {
        assert_eq!((iov.len(), iov[0].iov_base.addr() % align), (1, 0));
        let len = iov[0].iov_len.min(most);
        for (n, i) in (at..).zip(0..len) {
            // SAFETY: `i` is within the bounce buffer, which only this call accesses.
            unsafe { iov[0].iov_base.cast::<u8>().add(i).write(pattern(n)) };
        }
        len
    }

    /// Acts as `pwritev`: returns the contents of the bounce buffer.
    fn contents(iov: &[libc::iovec], align: usize) -> &[u8] {
        assert_eq!((iov.len(), iov[0].iov_base.addr() % align), (1, 0));
        // SAFETY: only this call accesses the bounce buffer, which was filled from the guest's ranges.
        unsafe { std::slice::from_raw_parts(iov[0].iov_base.cast(), iov[0].iov_len) }
    }

    #[test]
    fn bytes_arrive_in_order_whatever_the_ranges() {
        let lens = [1, 511, 3, BOUNCE_MAX, 5, BOUNCE_MAX + 504];
        let mut parts: Vec<Vec<u8>> = lens.iter().map(|&len| vec![0; len]).collect();
        let mut calls = Vec::new();
        read(&ranges(&mut parts), 4096, 512, |iov, at| {
            calls.push((at, iov[0].iov_len));
            Ok(fill(iov, at, 512, usize::MAX))
        })
        .unwrap();
        let max = BOUNCE_MAX as u64;
        assert_eq!(
            calls,
            [
                (4096, BOUNCE_MAX),
                (4096 + max, BOUNCE_MAX),
                (4096 + 2 * max, 1024)
            ]
        );
        assert!((4096..).zip(parts.concat()).all(|(n, byte)| byte == pattern(n)));

        let mut disk = Vec::new();
        write(&ranges(&mut parts), 0, 4096, |iov, at| {
            assert_eq!(at, disk.len() as u64);
            disk.extend_from_slice(contents(iov, 4096));
            Ok(iov[0].iov_len)
        })
        .unwrap();
        assert_eq!(disk, parts.concat());
    }

    #[test]
    fn a_salvage_replaces_unreadable_pieces_by_zeroes() {
        // Starts 512 bytes before a multiple of the piece size, in unaligned ranges. The pieces at 4096 and 8192 cannot
        // be read, and the disk ends at 15000.
        let mut parts = [vec![0xaa; 1000], vec![0xaa; 1], vec![0xaa; 12_311]];
        let read = |iov: &[libc::iovec], at: u64| match at {
            4096..12288 => Err(io::Error::from_raw_os_error(libc::EIO)),
            _ => Ok(fill(
                iov,
                at,
                1,
                usize::try_from(15_000_u64.saturating_sub(at)).unwrap().min(700),
            )),
        };
        salvage(&ranges(&mut parts), 3584, 1, read).unwrap();
        let bytes = parts.concat();
        for (n, byte) in (3584..).zip(bytes) {
            let readable = !(4096..12288).contains(&n) && n < 15_000;
            assert_eq!(byte, if readable { pattern(n) } else { 0 }, "{n}");
        }
    }

    #[test]
    fn a_short_transfer_of_the_buffer_is_resumed() {
        let mut parts = [vec![0; 100], vec![0; 924]];
        read(&ranges(&mut parts), 0, 512, |iov, at| Ok(fill(iov, at, 512, 512))).unwrap();
        assert!((0..).zip(parts.concat()).all(|(n, byte)| byte == pattern(n)));
    }

    #[test]
    fn a_failed_piece_leaves_guest_memory_unchanged() {
        let mut parts = [vec![0xaa; 1000], vec![0xaa; 24]];
        let result = read(&ranges(&mut parts), 0, 512, |iov, at| match at {
            0 => Ok(fill(iov, at, 512, 512)),
            _ => Ok(0),
        });
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(parts.concat().iter().all(|&byte| byte == 0xaa));
    }
}
