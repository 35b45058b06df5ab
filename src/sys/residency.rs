//! Which pages of a mapping are in memory.

use std::io;

/// Asks which pages from `start` on, the address of a page, are in memory. Those have the lowest bit set.
///
/// If the mapping is of a file to which this process may not write, the kernel says that all are.
///
/// # Errors
/// Some of the range is not mapped.
pub(crate) fn residency(start: *mut u8, pages: &mut [u8]) -> io::Result<()> {
    // SAFETY: `pages` has a byte for each page. The range itself is not accessed.
    super::status(unsafe { libc::mincore(start.cast(), pages.len() * 4096, pages.as_mut_ptr()) })
}
