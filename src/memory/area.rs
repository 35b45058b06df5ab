//! A resolved range of guest memory.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::mapping::Mapping;
use super::region::fits;
use crate::io::is_zero;

/// A resolved range of guest memory that keeps its mapping alive.
#[derive(Debug)]
pub struct MappedArea {
    pub(super) base: *mut u8,
    pub(super) len: usize,
    pub(super) mapping: Arc<Mapping>,
}

// SAFETY: the address stays valid wherever the value goes, since it holds the mapping; access is up to the user of
// `as_ptr`, who needs atomics or volatile operations anyway because the guest shares this memory.
unsafe impl Send for MappedArea {}
// SAFETY: as above; a shared reference gives no more than the address.
unsafe impl Sync for MappedArea {}

/// A region of guest memory, with the address for system calls. It keeps the mapping alive.
#[derive(Clone, Debug)]
pub(crate) struct KernelArea {
    pub(super) base: *mut u8,
    pub(super) len: usize,
    pub(super) mapping: Arc<Mapping>,
}

impl KernelArea {
    /// Returns the address of the first byte; valid for [`KernelArea::len`] bytes as long as this value lives.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.base
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Returns whether both are the same mapping.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.mapping, &other.mapping)
    }
}

impl MappedArea {
    /// Maps `len` bytes of a file that is not guest memory. `offset` is a multiple of the page size.
    ///
    /// # Errors
    /// The offset is misaligned, or the file cannot be mapped.
    pub(crate) fn map(file: &File, offset: u64, len: usize) -> io::Result<Self> {
        let mapping = Mapping::new(file, offset, len)?;
        Ok(Self {
            base: mapping.as_ptr(),
            len,
            mapping: Arc::new(mapping),
        })
    }

    /// Returns the `len` bytes from `offset` on.
    ///
    /// # Panics
    /// Not all of these bytes are in this range.
    pub(crate) fn part(&self, offset: usize, len: usize) -> Self {
        assert!(
            fits(offset as u64, len, self.len as u64),
            "a part must be inside the area"
        );
        Self {
            // SAFETY: within the range.
            base: unsafe { self.base.add(offset) },
            len,
            mapping: Arc::clone(&self.mapping),
        }
    }

    /// Returns whether an access has found a page of this range lost.
    pub(crate) fn is_lost(&self) -> bool {
        self.mapping.has_lost(self.base, self.len)
    }

    /// Returns whether all bytes are zero.
    pub(crate) fn is_zero(&self) -> bool {
        // SAFETY: the range is mapped as long as this value lives.
        unsafe { is_zero(self.base, self.len) }
    }

    /// Returns the address of the first byte; valid for [`MappedArea::len`] bytes as long as this value lives.
    pub fn as_ptr(&self) -> *mut u8 {
        self.base
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the range has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}
