//! Discard and write-zeroes, with fallbacks for storage that lacks them.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use super::kind::Kind;
use super::transfer::retry;
use crate::io::IoVecs;
use crate::sys::block_device;
use crate::sys::file::fallocate;

/// Number of zero bytes per write, where zeroes have to be written.
const PIECE: usize = 1 << 20;

/// Source of zeroes, aligned for O_DIRECT. It is never written to, so it stays a mapping of the kernel's zero page.
#[repr(align(4096))]
struct Zeroes([u8; 1 << 16]);
static ZEROES: Zeroes = Zeroes([0; 1 << 16]);

/// Ways of discarding and zeroing that this file has turned out not to support. Each is tried until it is found
/// missing.
#[derive(Debug, Default)]
pub(super) struct Missing {
    discard: AtomicBool,
    punch_hole: AtomicBool,
    zero_range: AtomicBool,
}

impl Missing {
    /// Discards a range, or does nothing if that is not supported.
    ///
    /// A regular file reads as zeroes there afterwards (`PUNCH_HOLE` also zeroes partial blocks at the edges). On a
    /// block device, only whole logical blocks are discarded, and their contents are then up to the device.
    pub(super) fn discard(
        &self,
        file: &File,
        kind: Kind,
        block: u64,
        offset: u64,
        len: u64,
    ) -> io::Result<()> {
        match kind {
            Kind::Regular => attempt(&self.punch_hole, || {
                fallocate(file, libc::FALLOC_FL_PUNCH_HOLE, offset, len)
            })?,
            Kind::BlockDevice => match inward(offset, len, block) {
                Some((offset, len)) => attempt(&self.discard, || block_device::discard(file, offset, len))?,
                None => true,
            },
        };
        Ok(())
    }

    /// Makes a range read as zeroes without writing them. Returns false if that is not possible.
    ///
    /// `may_unmap`: the space may be deallocated. This works on block devices, too: the kernel updates the page cache.
    pub(super) fn zero(&self, file: &File, offset: u64, len: u64, may_unmap: bool) -> io::Result<bool> {
        let hole = || fallocate(file, libc::FALLOC_FL_PUNCH_HOLE, offset, len);
        let zero = || fallocate(file, libc::FALLOC_FL_ZERO_RANGE, offset, len);
        Ok((may_unmap && attempt(&self.punch_hole, hole)?) || attempt(&self.zero_range, zero)?)
    }
}

/// Returns a list of zeroes to write: `len` bytes, or fewer if those are many.
pub(crate) fn zero_memory(len: u64) -> IoVecs {
    let piece = usize::try_from(len).unwrap_or(PIECE).min(PIECE);
    let mut iov = IoVecs::new();
    while iov.len() < piece {
        let part = (piece - iov.len()).min(ZEROES.0.len());
        // SAFETY: a static, which is always valid. It is only read, because the list is only a source.
        unsafe { iov.push(ZEROES.0.as_ptr().cast_mut(), part) };
    }
    iov
}

/// Writes zeroes in pieces, with `write(list, offset)`.
pub(super) fn write_zeroes(
    offset: u64,
    len: u64,
    mut write: impl FnMut(&IoVecs, u64) -> io::Result<()>,
) -> io::Result<()> {
    let end = offset + len;
    let mut at = offset;
    while at < end {
        let iov = zero_memory(end - at);
        write(&iov, at)?;
        at += iov.len() as u64;
    }
    Ok(())
}

/// Calls `op` unless it is known to be missing. Returns false if it is missing, or does not support this range.
fn attempt(missing: &AtomicBool, op: impl FnMut() -> io::Result<()>) -> io::Result<bool> {
    // Relaxed: a thread that sees the flag late makes one useless call.
    if missing.load(Ordering::Relaxed) {
        return Ok(false);
    }
    match retry(op) {
        Ok(()) => Ok(true),
        Err(e) if is_unsupported(&e) => {
            missing.store(true, Ordering::Relaxed);
            Ok(false)
        }
        // The range is misaligned, or (on some file systems) busy at the moment.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EBUSY)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Returns whether an error means that the kernel or the file system lacks an operation.
pub(super) fn is_unsupported(e: &io::Error) -> bool {
    matches!(
        e.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV | libc::ENOTTY)
    )
}

/// Returns the part of a range that consists of whole blocks, if any.
fn inward(offset: u64, len: u64, block: u64) -> Option<(u64, u64)> {
    let start = offset.checked_next_multiple_of(block)?;
    let end = (offset + len) / block * block;
    (start < end).then(|| (start, end - start))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failing(errno: i32) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn missing_operations_are_tried_once() {
        for errno in [libc::EOPNOTSUPP, libc::ENOSYS, libc::ENODEV, libc::ENOTTY] {
            let (missing, mut calls) = (AtomicBool::new(false), 0);
            for _ in 0..3 {
                let done = attempt(&missing, || {
                    calls += 1;
                    failing(errno)
                });
                assert!(!done.unwrap());
            }
            assert_eq!(calls, 1, "errno {errno}");
        }
    }

    #[test]
    fn an_unsuitable_range_does_not_affect_the_next() {
        let missing = AtomicBool::new(false);
        assert!(!attempt(&missing, || failing(libc::EINVAL)).unwrap());
        assert!(attempt(&missing, || Ok(())).unwrap());
    }

    #[test]
    fn interruptions_are_retried_and_errors_are_returned() {
        let (missing, mut results) = (AtomicBool::new(false), vec![Ok(()), failing(libc::EINTR)]);
        assert!(attempt(&missing, || results.pop().expect("two calls")).unwrap());
        let result = attempt(&missing, || failing(libc::ENOSPC));
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    }

    #[test]
    fn only_whole_blocks_are_discarded() {
        assert_eq!(inward(0, 4096, 4096), Some((0, 4096)));
        assert_eq!(inward(512, 8192, 4096), Some((4096, 4096)));
        assert_eq!(inward(512, 7680, 4096), Some((4096, 4096)));
        assert_eq!(inward(512, 4096, 4096), None);
        assert_eq!(inward(u64::MAX - 100, 100, 4096), None);
    }

    #[test]
    fn zeroes_cover_exactly_the_range() {
        let piece = PIECE as u64;
        for (offset, len) in [(512, 1), (0, piece), (7, 2 * piece + 513), (1 << 40, 100_000)] {
            let mut at = offset;
            write_zeroes(offset, len, |iov, offset| {
                assert_eq!(offset, at);
                assert!(iov.len() <= PIECE && iov.is_aligned(4096, 1));
                at += iov.len() as u64;
                Ok(())
            })
            .unwrap();
            assert_eq!(at, offset + len);
        }
    }
}
