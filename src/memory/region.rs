//! A region of the memory table.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use super::mapping::Mapping;

/// One region as the frontend describes it. All sizes and offsets are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionInfo {
    /// Guest physical address of the first byte.
    pub guest: u64,
    /// Length of the region.
    pub len: u64,
    /// Address of the first byte in the frontend's own address space, which ring addresses refer to.
    pub user: u64,
    /// Offset of the region in its file.
    pub file_offset: u64,
}

impl RegionInfo {
    /// The guest addresses of a region that was checked.
    pub(super) fn guest_range(&self) -> Range<u64> {
        self.guest..self.guest + self.len
    }
}

#[derive(Clone, Debug)]
pub(super) struct Region {
    pub(super) info: RegionInfo,
    pub(super) mapping: Arc<Mapping>,
    /// The file, if another process may take over.
    pub(super) file: Option<Arc<File>>,
}

/// Returns whether `len` bytes from `offset` on are among the first `total` bytes.
pub(super) fn fits(offset: u64, len: usize, total: u64) -> bool {
    offset.checked_add(len as u64).is_some_and(|end| end <= total)
}
