//! A guest's memory: four regions of one memfd with guard pages around them.

use std::fs::File;
use std::os::fd::FromRawFd;

use vhost_user_blk::memory::{GuestMemory, RegionInfo};

const PAGE: usize = 4096;
/// What guard pages are filled with.
const GUARD: u8 = 0xa5;
/// Bytes of the whole file.
pub const FILE_LEN: usize = 0x11 * PAGE;

/// Rings, and the first part of the heap.
pub const RINGS: RegionInfo = region(0, 0x4000, 0x7f00_0000_0000, 0x1000);
/// Adjoins the first one, in the guest but not in the host.
pub const NEXT_TO_IT: RegionInfo = region(0x4000, 0x2000, 0x7f00_1000_0000, 0x6000);
/// Behind a gap.
pub const APART: RegionInfo = region(0x1_0000, 0x4000, 0x7f00_2000_0000, 0x9000);
/// As far up as addresses go, but for two pages.
pub const HIGH: RegionInfo = region(0xffff_ffff_ffff_c000, 0x2000, 0x7f00_3000_0000, 0xe000);
/// All of them.
pub const REGIONS: [RegionInfo; 4] = [RINGS, NEXT_TO_IT, APART, HIGH];

const fn region(guest: u64, len: u64, user: u64, file_offset: u64) -> RegionInfo {
    RegionInfo {
        guest,
        len,
        user,
        file_offset,
    }
}

/// The guest's memory at a point in time, as bytes of the file.
#[derive(Clone, PartialEq, Eq)]
pub struct Image(pub Vec<u8>);

impl Image {
    /// Zeroes, and guard pages.
    pub fn new() -> Self {
        let mut bytes = vec![GUARD; FILE_LEN];
        for r in REGIONS {
            bytes[r.file_offset as usize..(r.file_offset + r.len) as usize].fill(0);
        }
        Self(bytes)
    }

    /// Where a guest address is in the file.
    pub fn offset(guest: u64) -> Option<usize> {
        let r = REGIONS
            .iter()
            .find(|r| guest >= r.guest && guest - r.guest < r.len)?;
        Some((r.file_offset + (guest - r.guest)) as usize)
    }

    /// The byte at a guest address, if there is one.
    pub fn byte(&self, guest: u64) -> Option<u8> {
        Some(self.0[Self::offset(guest)?])
    }

    /// Stores a byte; one that has no place is dropped.
    pub fn put(&mut self, guest: u64, byte: u8) {
        if let Some(at) = Self::offset(guest) {
            self.0[at] = byte;
        }
    }

    /// Stores bytes.
    pub fn write(&mut self, guest: u64, bytes: &[u8]) {
        for (at, &byte) in (0..).zip(bytes) {
            self.put(guest.wrapping_add(at), byte);
        }
    }

    /// A little-endian number of two bytes that are there.
    pub fn u16(&self, guest: u64) -> u16 {
        let byte = |at| self.byte(at).expect("the rings are mapped");
        u16::from_le_bytes([byte(guest), byte(guest + 1)])
    }

    /// Fails where this differs from what is expected, and says where.
    pub fn assert_is(&self, expected: &Self, except: &[std::ops::Range<usize>]) {
        if self == expected {
            return;
        }
        let differs = |&at: &usize| self.0[at] != expected.0[at] && !except.iter().any(|r| r.contains(&at));
        if let Some(at) = (0..FILE_LEN).find(differs) {
            panic!(
                "byte {at:#x} of the guest's memory is {:#x} and not {:#x}",
                self.0[at], expected.0[at]
            );
        }
    }
}

impl Default for Image {
    fn default() -> Self {
        Self::new()
    }
}

/// The memory itself, mapped here too.
pub struct Guest {
    pub file: File,
    base: *mut u8,
}

impl Guest {
    pub fn new() -> Self {
        let file = memfd(FILE_LEN as u64);
        let guest = Self {
            base: map(&file, FILE_LEN),
            file,
        };
        guest.load(&Image::new());
        guest
    }

    /// Sets all of it.
    pub fn load(&self, image: &Image) {
        // SAFETY: the mapping has as many bytes; whoever else looks at it does so as a device does.
        unsafe { std::ptr::copy_nonoverlapping(image.0.as_ptr(), self.base, FILE_LEN) };
    }

    /// All of it as it is now.
    pub fn image(&self) -> Image {
        let mut bytes = vec![0; FILE_LEN];
        // SAFETY: as for `load`.
        unsafe { std::ptr::copy_nonoverlapping(self.base, bytes.as_mut_ptr(), FILE_LEN) };
        Image(bytes)
    }

    /// Sets a few bytes; those that have no place are dropped.
    pub fn write(&self, guest: u64, bytes: &[u8]) {
        for (at, &byte) in (0..).zip(bytes) {
            if let Some(offset) = Image::offset(guest.wrapping_add(at)) {
                // SAFETY: within the mapping.
                unsafe { self.base.add(offset).write_volatile(byte) };
            }
        }
    }

    /// Reads a number that is in a ring.
    pub fn u16(&self, guest: u64) -> u16 {
        let byte = |at| {
            let offset = Image::offset(at).expect("the rings are mapped");
            // SAFETY: within the mapping.
            unsafe { self.base.add(offset).read_volatile() }
        };
        u16::from_le_bytes([byte(guest), byte(guest + 1)])
    }

    /// As the daemon maps it.
    pub fn table(&self) -> GuestMemory {
        let file = || self.file.try_clone().expect("another descriptor");
        GuestMemory::map(REGIONS.map(|r| (r, file()))).expect("a table like any other")
    }
}

impl Default for Guest {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // SAFETY: nobody uses the mapping any more.
        unsafe { libc::munmap(self.base.cast(), FILE_LEN) };
    }
}

/// A file in memory that may be sealed.
pub fn memfd(len: u64) -> File {
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"fuzz".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    assert!(fd >= 0, "no memfd");
    // SAFETY: just made, owned by nobody else.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len).expect("size a memfd");
    file
}

/// An eventfd; reads and writes never wait.
pub fn eventfd() -> File {
    // SAFETY: no pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
    assert!(fd >= 0, "no eventfd");
    // SAFETY: just made, owned by nobody else.
    unsafe { File::from_raw_fd(fd) }
}

fn map(file: &File, len: usize) -> *mut u8 {
    use std::os::fd::AsRawFd;
    // SAFETY: a new mapping; the result is checked.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    assert_ne!(base, libc::MAP_FAILED, "cannot map the guest's memory");
    base.cast()
}
