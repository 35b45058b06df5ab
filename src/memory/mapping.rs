//! Mappings of files that somebody else shares with us.

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::AsRawFd;
use std::ptr;

use super::guard::Guarded;
use crate::status::status;

const PAGE: u64 = 4096;

/// A part of a file, mapped shared, readable and writable. The file may become shorter: see [`Mapping::is_lost`].
#[derive(Debug)]
pub(super) struct Mapping {
    /// First mapped byte; a page's first.
    start: *mut u8,
    /// Mapped bytes: whole pages.
    mapped: usize,
    /// The first byte that was asked for, counted from `start`.
    skip: usize,
    /// Before the unmapping: the handler must not touch what is not ours.
    guarded: Option<Guarded>,
}

// SAFETY: the address stays valid wherever the value goes; access is up to whoever uses `as_ptr`, with atomics or
// volatile operations, because the memory is shared with another process anyway.
unsafe impl Send for Mapping {}
// SAFETY: as above; a shared reference gives no more than the address.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes from `offset` on, a multiple of 4096 (not necessarily of the file's own page size).
    ///
    /// # Errors
    /// Those of `mmap`.
    pub(super) fn new(file: &File, offset: u64, len: usize) -> io::Result<Self> {
        if !offset.is_multiple_of(PAGE) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let page = page_size(file)?;
        let (skip, too_long) = (offset % page, io::ErrorKind::OutOfMemory);
        let file_offset = libc::off_t::try_from(offset - skip).map_err(io::Error::other)?;
        let (skip, page) = (to_usize(skip)?, to_usize(page)?);
        let mapped = len
            .checked_add(skip)
            .and_then(|len| len.checked_next_multiple_of(page))
            .ok_or(too_long)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        let fd = file.as_raw_fd();
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let start = unsafe { libc::mmap(ptr::null_mut(), mapped, protection, flags, fd, file_offset) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = start.cast::<u8>();
        let mut mapping = Self {
            start,
            mapped,
            skip,
            guarded: None,
        };
        mapping.guarded = Some(Guarded::new(start, mapped, page)?);
        Ok(mapping)
    }

    /// The first byte that was asked for.
    pub(super) fn as_ptr(&self) -> *mut u8 {
        // SAFETY: `skip` is below the mapped length.
        unsafe { self.start.add(self.skip) }
    }

    /// True once an access has found the file too short. Zeroes are there instead, and nobody shares them.
    pub(super) fn is_lost(&self) -> bool {
        self.guarded.as_ref().is_some_and(Guarded::is_lost)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.guarded = None;
        // SAFETY: our own mapping, and the last use of it.
        unsafe { libc::munmap(self.start.cast(), self.mapped) };
    }
}

fn to_usize(value: u64) -> io::Result<usize> {
    usize::try_from(value).map_err(io::Error::other)
}

/// Bytes of the pages that a mapping of the file consists of.
fn page_size(file: &File) -> io::Result<u64> {
    // SAFETY: all zeroes is a valid statfs.
    let mut stat: libc::statfs = unsafe { mem::zeroed() };
    // SAFETY: the struct is valid for the call.
    status(unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut stat) })?;
    if stat.f_type == libc::HUGETLBFS_MAGIC {
        u64::try_from(stat.f_bsize).map_err(io::Error::other)
    } else {
        Ok(PAGE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::guard::losses;

    fn file(len: u64) -> File {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(len).unwrap();
        file
    }

    fn read(mapping: &Mapping, offset: usize) -> u8 {
        // SAFETY: the tests stay in the mapping; volatile because the file may change.
        unsafe { mapping.as_ptr().add(offset).read_volatile() }
    }

    fn write(mapping: &Mapping, offset: usize, value: u8) {
        // SAFETY: as in `read`.
        unsafe { mapping.as_ptr().add(offset).write_volatile(value) }
    }

    #[test]
    fn a_mapping_survives_a_file_that_becomes_shorter_and_says_so() {
        let (file, other) = (file(4 * PAGE), file(4 * PAGE));
        let mapping = Mapping::new(&file, PAGE, 3 * 4096).unwrap();
        let neighbour = Mapping::new(&other, 0, 4 * 4096).unwrap();
        (0..3).for_each(|page| write(&mapping, page * 4096, 7));
        let before = losses();
        file.set_len(2 * PAGE).unwrap();
        assert!(!mapping.is_lost());
        // One page is left; what is behind it is zero from the first access on.
        assert_eq!((read(&mapping, 0), read(&mapping, 2 * 4096 + 5)), (7, 0));
        assert!(mapping.is_lost() && losses() > before);
        assert_eq!(read(&mapping, 4096), 0);
        write(&mapping, 2 * 4096, 9);
        assert_eq!((read(&mapping, 0), read(&mapping, 2 * 4096)), (7, 9));
        assert!(!neighbour.is_lost());
        drop(mapping);
        let sound = Mapping::new(&other, 0, 4 * 4096).unwrap();
        write(&neighbour, 1, 5);
        assert_eq!((read(&sound, 1), sound.is_lost()), (5, false));
    }

    #[test]
    fn any_thread_may_find_the_file_too_short() {
        let file = file(256 * PAGE);
        let mapping = Mapping::new(&file, 0, 256 * 4096).unwrap();
        let before = losses();
        file.set_len(0).unwrap();
        std::thread::scope(|scope| {
            for start in 0..8 {
                let mapping = &mapping;
                scope.spawn(move || {
                    for page in (start..256).rev() {
                        assert_eq!(read(mapping, page * 4096), 0);
                        assert!(
                            losses() > before,
                            "a zero was read, and nothing is known of a loss"
                        );
                    }
                });
            }
        });
        assert!(mapping.is_lost());
    }

    #[test]
    fn huge_pages_are_mapped_and_lost_as_a_whole() {
        let flags = libc::MFD_HUGETLB | libc::MFD_HUGE_2MB;
        // SAFETY: the name is a C string, the flags are valid.
        let fd = unsafe { libc::memfd_create(c"huge".as_ptr(), flags) };
        let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
        if fd < 0 || free.map_or(0, |free| free.trim().parse().unwrap_or(0)) < 2 {
            eprintln!("skipped: no huge pages");
            return;
        }
        // SAFETY: just made, and nobody else has it.
        let file: File = unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) };
        let huge = 2 << 20;
        file.set_len(2 * huge).unwrap();
        // From the middle of the first page to the middle of the second.
        let mapping = Mapping::new(&file, huge / 2, 2 << 20).unwrap();
        write(&mapping, 0, 5);
        write(&mapping, (2 << 20) - 1, 6);
        file.set_len(huge).unwrap();
        assert_eq!((read(&mapping, 0), read(&mapping, (2 << 20) - 1)), (5, 0));
        assert!(mapping.is_lost());
        file.set_len(0).unwrap();
        assert_eq!(read(&mapping, 0), 0);
    }

    #[test]
    fn what_cannot_be_mapped_is_refused() {
        assert!(Mapping::new(&file(PAGE), 1, 4096).is_err());
        assert!(Mapping::new(&file(PAGE), 0, usize::MAX).is_err());
        assert!(Mapping::new(&file(PAGE), 0, 1 << 62).is_err());
        assert!(Mapping::new(&file(PAGE), u64::MAX - 4095, 4096).is_err());
        let read_only = File::open("/proc/self/exe").unwrap();
        assert!(Mapping::new(&read_only, 0, 4096).is_err());
    }
}
