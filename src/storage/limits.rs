//! The abilities and requirements of a disk.

use std::path::Path;

use super::error::Error;

/// Size of a VIRTIO sector, and the smallest logical block size.
pub(super) const SECTOR: u32 = 512;
/// Largest logical block size that can be chosen.
pub(super) const BLOCK_MAX: u32 = 32768;

/// The storage's properties, and its requirements for requests. All sizes are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Unit of addressing and of atomicity that the device announces: a power of two, at least 512.
    pub logical_block_size: u32,
    /// Physical block size: a power of two, and a multiple of the logical block size.
    pub physical_block_size: u32,
    /// Best request size, or 0 if unknown.
    pub optimal_io_size: u32,
    /// Power of two of which offsets and lengths must be multiples (with O_DIRECT often 512 or 4096, else 1). At most
    /// the logical block size.
    pub request_alignment: u32,
    /// Power of two. A buffer goes through a bounce buffer unless its address is a multiple of this and its length a
    /// multiple of `request_alignment`.
    pub memory_alignment: u32,
    /// Granularity in which a discard deallocates, or 0 if discards are not supported.
    pub discard_granularity: u32,
    /// Write-zeroes is worth offering to the guest.
    pub write_zeroes: bool,
    /// Writes are refused.
    pub read_only: bool,
}

impl Limits {
    /// Returns the limits of a disk with larger logical blocks on the same storage, `size` bytes at `path`.
    ///
    /// # Errors
    /// The block size is not possible, or `size` is not a multiple of it.
    pub fn with_logical_block_size(self, block: u32, size: u64, path: &Path) -> Result<Self, Error> {
        let path = || path.to_owned();
        if !block.is_power_of_two() || !(SECTOR..=BLOCK_MAX).contains(&block) {
            return Err(Error::BlockSize { size: block });
        }
        if block < self.logical_block_size {
            return Err(Error::BlockSizeTooSmall {
                path: path(),
                size: block,
                least: self.logical_block_size,
                reason: "its storage needs multiples",
            });
        }
        if !size.is_multiple_of(block.into()) {
            return Err(Error::FileSize {
                path: path(),
                size,
                block,
            });
        }
        Ok(Self {
            logical_block_size: block,
            physical_block_size: self.physical_block_size.max(block),
            ..self
        })
    }

    /// Returns the limits of a disk that does not write to its storage.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self {
            discard_granularity: 0,
            write_zeroes: false,
            read_only: true,
            ..self
        }
    }
}
