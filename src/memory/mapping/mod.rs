//! Mappings of files that another process shares with us.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::ptr;
use std::sync::OnceLock;

use rustix::fs::fstatfs;

use super::quota::Place;
use super::served;
use crate::guard::{Guarded, User};

const PAGE: u64 = 4096;

/// Distances from our own mapping of guest memory up to the kernel's, in the order in which they are tried. All pairs
/// of mappings use the same distance, so that an address in one mapping gives the address in the other.
///
/// Something else may be mapped at a distance. Below the first mappings AddressSanitizer reserves more than 4 TiB, of
/// which a large mapping may miss what later ones hit, so 12 TiB come first. With 39-bit addresses only the short
/// distances are possible. The last distances put our mapping above the kernel's, in case that starts at a low address
/// (valgrind).
const DISTANCES: [usize; 5] = [
    3 << 42,
    1 << 42,
    1 << 36,
    (1_usize << 42).wrapping_neg(),
    (1_usize << 36).wrapping_neg(),
];

/// The distance in use.
static DISTANCE: OnceLock<usize> = OnceLock::new();

/// Number of addresses to retry at before giving up on a second mapping.
const PLACES: usize = 16;

/// A part of a file, mapped shared, readable and writable. Its pages may go away: see [`Mapping::has_lost`].
#[derive(Debug)]
pub(super) struct Mapping {
    /// The mapping for our own accesses; lost pages are replaced here.
    own: Part,
    /// The mapping for system calls; guest memory only.
    kernel: Option<Part>,
    /// Offset of the first requested byte in either mapping.
    skip: usize,
    /// The place in the frontend's quota; guest memory only.
    _place: Option<Place>,
}

/// Mapped pages.
#[derive(Debug)]
struct Part {
    start: *mut u8,
    len: usize,
    /// Dropped before the memory is unmapped: the handler must not touch memory that is no longer ours.
    guarded: Option<Guarded>,
}

// SAFETY: the address stays valid wherever the value goes; access is up to the user of the mapping, who uses atomics or
// volatile operations, because the memory is shared with another process anyway.
unsafe impl Send for Part {}
// SAFETY: as above; a shared reference gives no more than the address.
unsafe impl Sync for Part {}

/// The pages of a file that contain a requested range.
#[derive(Clone, Copy, Debug)]
struct Pages<'a> {
    file: &'a File,
    offset: libc::off_t,
    len: usize,
    /// Size of a page in bytes.
    size: usize,
    /// Offset of the requested range in the first page.
    skip: usize,
}

impl<'a> Pages<'a> {
    /// Finds the pages that contain `len` bytes from `offset` on. `offset` is a multiple of 4096, but not necessarily
    /// of the file's own page size.
    fn of(file: &'a File, offset: u64, len: usize) -> io::Result<Self> {
        if !offset.is_multiple_of(PAGE) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let page = page_size(file)?;
        let (skip, too_long) = (offset % page, io::ErrorKind::OutOfMemory);
        let offset = libc::off_t::try_from(offset - skip).map_err(io::Error::other)?;
        let (skip, size) = (to_usize(skip)?, to_usize(page)?);
        let len = len
            .checked_add(skip)
            .and_then(|len| len.checked_next_multiple_of(size))
            .ok_or(too_long)?;
        Ok(Self {
            file,
            offset,
            len,
            size,
            skip,
        })
    }

    /// Maps the pages at `addr`, or wherever the kernel chooses.
    fn map(&self, addr: Option<usize>, user: User) -> io::Result<Part> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let fixed = addr.map_or(0, |_| libc::MAP_FIXED_NOREPLACE);
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE | fixed;
        let hint = ptr::without_provenance_mut(addr.unwrap_or(0));
        let fd = self.file.as_raw_fd();
        // SAFETY: a new mapping that replaces no other one.
        let start = unsafe { libc::mmap(hint, self.len, protection, flags, fd, self.offset) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = start.cast::<u8>();
        // Addresses for our own accesses are computed from the kernel's addresses.
        start.expose_provenance();
        let mut part = Part {
            start,
            len: self.len,
            guarded: None,
        };
        if addr.is_some_and(|addr| addr != part.start.addr()) {
            // The kernel does not support MAP_FIXED_NOREPLACE.
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        part.guarded = Some(Guarded::new(part.start, part.len, self.size, user)?);
        Ok(part)
    }

    /// Maps the pages twice, for ourselves and for the kernel.
    fn map_twice(&self) -> io::Result<(Part, Part)> {
        // Kept mapped until the end, or the kernel would choose the same addresses again.
        let mut refused = Vec::new();
        loop {
            let kernel = self.map(None, User::Kernel)?;
            match self.map_own(kernel.start.addr()) {
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) && refused.len() < PLACES => {
                    refused.push(kernel);
                }
                own => return Ok((own?, kernel)),
            }
        }
    }

    /// Maps the pages for ourselves, at the distance from `kernel`, the start of the kernel's mapping. The first call
    /// chooses the distance.
    fn map_own(&self, kernel: usize) -> io::Result<Part> {
        let map = |distance: usize| self.map(Some(kernel.wrapping_sub(distance)), User::Ourselves);
        if let Some(&distance) = DISTANCE.get() {
            return map(distance);
        }
        let mut taken = Err(io::ErrorKind::OutOfMemory.into());
        for distance in DISTANCES {
            match map(distance) {
                Ok(own) if *DISTANCE.get_or_init(|| distance) == distance => return Ok(own),
                // Another thread has chosen a different distance in the meantime.
                Ok(_) => return self.map_own(kernel),
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => taken = Err(error),
                Err(_) => {}
            }
        }
        taken
    }
}

impl Mapping {
    /// Maps `len` bytes from `offset` on for our own accesses only. `offset` is a multiple of 4096.
    ///
    /// # Errors
    /// The offset is misaligned, or the file cannot be mapped.
    pub(super) fn new(file: &File, offset: u64, len: usize) -> io::Result<Self> {
        let pages = Pages::of(file, offset, len)?;
        Ok(Self {
            own: pages.map(None, User::Ourselves)?,
            kernel: None,
            skip: pages.skip,
            _place: None,
        })
    }

    /// Maps `len` bytes of guest memory from `offset` on, for our own accesses and for the kernel.
    ///
    /// # Errors
    /// The offset is misaligned, or the file cannot be mapped.
    pub(super) fn of_guest(file: &File, offset: u64, len: usize, place: Place) -> io::Result<Self> {
        let pages = Pages::of(file, offset, len)?;
        let (own, kernel) = pages.map_twice()?;
        Ok(Self {
            own,
            kernel: Some(kernel),
            skip: pages.skip,
            _place: Some(place),
        })
    }

    /// Returns the address of the first requested byte, for our own accesses.
    pub(super) fn as_ptr(&self) -> *mut u8 {
        // SAFETY: `skip` is below the mapped length.
        unsafe { self.own.start.add(self.skip) }
    }

    /// Returns the address of the same byte, for system calls.
    pub(super) fn kernel_ptr(&self) -> *mut u8 {
        let part = self.kernel.as_ref().unwrap_or(&self.own);
        // SAFETY: as in `as_ptr`.
        unsafe { part.start.add(self.skip) }
    }

    /// Returns the distance to subtract (modulo 2^64) from an address for system calls to get our own.
    pub(super) fn distance(&self) -> usize {
        self.kernel_ptr().addr().wrapping_sub(self.as_ptr().addr())
    }

    /// Returns whether one of our own accesses has found a page of the `len` bytes at `start` lost. These bytes must be
    /// in this mapping.
    ///
    /// A lost page is replaced by private zeroes.
    pub(super) fn has_lost(&self, start: *const u8, len: usize) -> bool {
        self.guarded().is_some_and(|guarded| guarded.has_lost(start, len))
    }

    /// Returns the ranges that accesses have found lost, as offsets from the first requested byte.
    pub(super) fn lost(&self) -> Vec<Range<u64>> {
        let offset = |addr: usize| addr.saturating_sub(self.as_ptr().addr()) as u64;
        let lost = self.guarded().into_iter().flat_map(Guarded::lost);
        lost.map(|range| offset(range.start)..offset(range.end)).collect()
    }

    fn guarded(&self) -> Option<&Guarded> {
        self.own.guarded.as_ref()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.guarded = None;
        // SAFETY: this is our own mapping, and its last use.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

fn to_usize(value: u64) -> io::Result<usize> {
    usize::try_from(value).map_err(io::Error::other)
}

/// Returns the size of the pages that a mapping of the file consists of.
///
/// # Errors
/// The file is on a file system with a server, or cannot be mapped.
fn page_size(file: &File) -> io::Result<u64> {
    let stat = fstatfs(file)?;
    served::refuse(stat.f_type)?;
    if file.metadata()?.file_type().is_char_device() {
        // Device-DAX memory is mapped in pages of its own size, which only sysfs tells, so try each size.
        return PAGE_SIZES
            .into_iter()
            .find(|&page| can_be_mapped_in(file, page))
            .ok_or_else(|| io::ErrorKind::InvalidInput.into());
    }
    if stat.f_type == libc::HUGETLBFS_MAGIC {
        u64::try_from(stat.f_bsize).map_err(io::Error::other)
    } else {
        Ok(PAGE)
    }
}

/// Possible page sizes of device memory; the smallest one that can be mapped is the right one.
const PAGE_SIZES: [u64; 3] = [PAGE, 2 << 20, 1 << 30];

/// Tests whether the file can be mapped if address and length are multiples of `page`, but not of a larger page size.
fn can_be_mapped_in(file: &File, page: u64) -> bool {
    let largest = PAGE_SIZES[PAGE_SIZES.len() - 1];
    let (Ok(page), Ok(largest)) = (to_usize(page), to_usize(largest)) else {
        return false;
    };
    // Enough for an aligned page of the largest size, and for the one after it.
    let room = 3 * largest;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping that nobody accesses.
    let start = unsafe { libc::mmap(ptr::null_mut(), room, libc::PROT_NONE, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return false;
    }
    let at = start.addr().next_multiple_of(largest) + page;
    let (hint, fd) = (ptr::without_provenance_mut(at), file.as_raw_fd());
    let flags = libc::MAP_SHARED | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: replaces a part of the mapping above.
    let mapped = unsafe { libc::mmap(hint, page, libc::PROT_NONE, flags, fd, 0) };
    // SAFETY: the whole range is ours, and nothing uses it.
    unsafe { libc::munmap(start, room) };
    mapped != libc::MAP_FAILED
}

#[cfg(test)]
mod tests;
