//! A guest's memory: four regions of one memfd with guard pages around them.

use std::fs::File;

use testkit::memory::SharedMemory;
use testkit::ring::RingMemory;
use vhost_user_blk::memory::{GuestMemory, RegionInfo};

pub use testkit::memory::{eventfd, memfd};

const PAGE: usize = 4096;
/// The content of guard pages.
const GUARD: u8 = 0xa5;
/// Length of the whole file.
pub const FILE_LEN: usize = 0x11 * PAGE;

/// The region with the rings and the first part of the heap.
pub const RINGS: RegionInfo = region(0, 0x4000, 0x7f00_0000_0000, 0x1000);
/// The region that follows `RINGS` directly in the guest, but not in the host.
pub const NEXT_TO_IT: RegionInfo = region(0x4000, 0x2000, 0x7f00_1000_0000, 0x6000);
/// A region after a gap.
pub const APART: RegionInfo = region(0x1_0000, 0x4000, 0x7f00_2000_0000, 0x9000);
/// The region with the highest addresses. Two pages are left above it.
pub const HIGH: RegionInfo = region(0xffff_ffff_ffff_c000, 0x2000, 0x7f00_3000_0000, 0xe000);
/// All regions.
pub const REGIONS: [RegionInfo; 4] = [RINGS, NEXT_TO_IT, APART, HIGH];

const fn region(guest: u64, len: u64, user: u64, file_offset: u64) -> RegionInfo {
    RegionInfo {
        guest,
        len,
        user,
        file_offset,
    }
}

/// A copy of the guest's memory at a point in time, as bytes of the file.
#[derive(Clone, PartialEq, Eq)]
pub struct Image(pub Vec<u8>);

impl Image {
    /// Makes an image of zeroes between guard pages.
    pub fn new() -> Self {
        let mut bytes = vec![GUARD; FILE_LEN];
        for r in REGIONS {
            bytes[r.file_offset as usize..(r.file_offset + r.len) as usize].fill(0);
        }
        Self(bytes)
    }

    /// Returns the offset of a guest address in the file.
    pub fn offset(guest: u64) -> Option<usize> {
        let r = REGIONS
            .iter()
            .find(|r| guest >= r.guest && guest - r.guest < r.len)?;
        Some((r.file_offset + (guest - r.guest)) as usize)
    }

    /// Returns the byte at a guest address, if the address is mapped.
    pub fn byte(&self, guest: u64) -> Option<u8> {
        Some(self.0[Self::offset(guest)?])
    }

    /// Stores a byte. Does nothing if the address is not mapped.
    pub fn put(&mut self, guest: u64, byte: u8) {
        if let Some(at) = Self::offset(guest) {
            self.0[at] = byte;
        }
    }

    /// Stores bytes, except those whose addresses are not mapped.
    pub fn write(&mut self, guest: u64, bytes: &[u8]) {
        for (at, &byte) in (0..).zip(bytes) {
            self.put(guest.wrapping_add(at), byte);
        }
    }

    /// Returns the little-endian number at a mapped address.
    pub fn u16(&self, guest: u64) -> u16 {
        let byte = |at| self.byte(at).expect("the rings are mapped");
        u16::from_le_bytes([byte(guest), byte(guest + 1)])
    }

    /// Panics with the first offset at which this image differs from `expected`, outside the ranges `except`.
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

/// The guest's memory, mapped in this process.
pub struct Guest {
    memory: SharedMemory,
}

impl Guest {
    pub fn new() -> Self {
        let memory = SharedMemory::map(memfd(FILE_LEN as u64), FILE_LEN);
        let guest = Self { memory };
        guest.load(&Image::new());
        guest
    }

    pub fn file(&self) -> &File {
        self.memory.file()
    }

    /// Sets the whole memory.
    pub fn load(&self, image: &Image) {
        self.memory.write(0, &image.0);
    }

    /// Returns a copy of the whole memory.
    pub fn image(&self) -> Image {
        Image(self.memory.read(0, FILE_LEN))
    }

    /// Stores bytes, except those whose addresses are not mapped.
    pub fn write(&self, guest: u64, bytes: &[u8]) {
        for (at, &byte) in (0..).zip(bytes) {
            if let Some(offset) = Image::offset(guest.wrapping_add(at)) {
                self.memory.write(offset, &[byte]);
            }
        }
    }

    /// Reads a little-endian number at a mapped address.
    pub fn u16(&self, guest: u64) -> u16 {
        u16::from_le_bytes(RingMemory::read(self, guest as usize))
    }

    /// Maps the memory as the daemon does.
    pub fn table(&self) -> GuestMemory {
        let file = || self.file().try_clone().expect("another descriptor");
        GuestMemory::map(REGIONS.map(|r| (r, file()))).expect("a table like any other")
    }
}

impl Default for Guest {
    fn default() -> Self {
        Self::new()
    }
}

/// Offsets are guest addresses.
impl RingMemory for Guest {
    fn read<const N: usize>(&self, at: usize) -> [u8; N] {
        std::array::from_fn(|i| {
            let offset = Image::offset((at + i) as u64).expect("the rings are mapped");
            let [byte] = RingMemory::read(&self.memory, offset);
            byte
        })
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        Self::write(self, at as u64, bytes);
    }

    fn load_u16(&self, at: usize) -> u16 {
        self.u16(at as u64)
    }

    fn store_u16(&self, at: usize, value: u16) {
        Self::write(self, at as u64, &value.to_le_bytes());
    }
}
