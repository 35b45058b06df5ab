//! Guest memory: maps the frontend's memory table and translates guest addresses.
//!
//! A [`GuestMemory`] is an immutable snapshot. Changing the table makes a new snapshot that shares the unchanged
//! mappings. A holder of a snapshot (a ring, a request in flight) keeps its mappings alive. Nothing here touches the
//! contents of guest memory, but for looking whether they are zero.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

mod area;
mod file;
mod log;
mod mapping;
mod quota;
mod region;
mod removed;
mod served;
mod view;

pub(crate) use area::KernelArea;
pub use area::MappedArea;
pub(crate) use file::{keep_files, keep_length, keeps_files, kept, memfd};
pub use log::{DirtyLog, LogError, RingLog};
use mapping::Mapping;
pub use quota::MAX_REGIONS;
use quota::{MAX_MAPPED, Quota};
pub use region::RegionInfo;
use region::{Region, fits};
use removed::Removed;
pub use view::MemoryView;

/// The reason why a memory table was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A region is empty, wraps around or overlaps another region.
    #[error("memory region {guest:#x}+{len:#x} is empty, wraps around or overlaps another region")]
    BadRange {
        /// Guest address of the refused region.
        guest: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// The table has more than [`MAX_REGIONS`] regions.
    #[error("more than {MAX_REGIONS} memory regions")]
    TooMany,
    /// The frontend has the regions of two whole tables mapped, with the removed ones that are still in use.
    #[error(
        "{MAX_MAPPED} memory regions are mapped already: requests in flight, or rings, still use the ones that were \
         removed"
    )]
    InUse,
    /// REM_MEM_REG named a region that does not exist.
    #[error("no memory region {guest:#x}+{len:#x} to remove")]
    NotFound {
        /// Guest address of the region to remove.
        guest: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// The file ends before the region does.
    #[error("memory region {guest:#x}+{len:#x} is beyond the end of its file ({size:#x} bytes)")]
    BeyondEof {
        /// Guest address of the refused region.
        guest: u64,
        /// Its length in bytes.
        len: u64,
        /// Size of the file in bytes.
        size: u64,
    },
    /// The file could not be mapped (for example: misaligned offset, out of memory).
    #[error("memory region {guest:#x}+{len:#x} cannot be mapped")]
    Map {
        /// Guest address of the refused region.
        guest: u64,
        /// Its length in bytes.
        len: u64,
        /// The operating system's error.
        source: std::io::Error,
    },
}

/// An immutable snapshot of the memory table, sorted by guest address.
#[derive(Clone, Debug, Default)]
pub struct GuestMemory {
    regions: Vec<Region>,
    /// Memory that earlier tables had, and that may be given back.
    removed: Removed,
    quota: Quota,
}

impl GuestMemory {
    /// Maps a whole table (SET_MEM_TABLE).
    ///
    /// # Errors
    /// There are too many regions, or a region is empty, wraps around, overlaps another one, or cannot be mapped. On an
    /// error, nothing stays mapped.
    pub fn map(table: impl IntoIterator<Item = (RegionInfo, File)>) -> Result<Self, Error> {
        Self::default().with_regions(table)
    }

    fn with_regions(self, table: impl IntoIterator<Item = (RegionInfo, File)>) -> Result<Self, Error> {
        table
            .into_iter()
            .try_fold(self, |memory, (info, file)| memory.with_region(info, &file))
    }

    /// Maps a whole table that replaces this one (SET_MEM_TABLE).
    ///
    /// # Errors
    /// As for [`GuestMemory::map`].
    pub fn replaced_by(&self, table: impl IntoIterator<Item = (RegionInfo, File)>) -> Result<Self, Error> {
        let none = Self {
            quota: self.quota.clone(),
            ..Self::default()
        };
        let mut memory = none.with_regions(table)?;
        memory.removed = self.removed.clone();
        self.regions
            .iter()
            .for_each(|region| memory.removed.add(region.info.guest_range()));
        memory
            .regions
            .iter()
            .for_each(|region| memory.removed.subtract(&region.info.guest_range()));
        Ok(memory)
    }

    /// Returns this table with one more region (ADD_MEM_REG).
    ///
    /// # Errors
    /// As for [`GuestMemory::map`].
    pub fn with_region(&self, info: RegionInfo, file: &File) -> Result<Self, Error> {
        let RegionInfo {
            guest,
            len,
            user,
            file_offset,
        } = info;
        let bad = Error::BadRange { guest, len };
        let (Some(end), Some(_)) = (guest.checked_add(len), user.checked_add(len)) else {
            return Err(bad);
        };
        let Ok(size) = usize::try_from(len) else {
            return Err(bad);
        };
        let overlaps = |r: &Region| guest < r.info.guest + r.info.len && r.info.guest < end;
        let Some(file_end) = file_offset.checked_add(len) else {
            return Err(bad);
        };
        if len == 0 || self.regions.iter().any(overlaps) {
            return Err(bad);
        }
        check_eof(file, file_end).map_err(|size| Error::BeyondEof { guest, len, size })?;
        if self.regions.len() == MAX_REGIONS {
            return Err(Error::TooMany);
        }
        let place = self.quota.take().ok_or(Error::InUse)?;
        let unmapped = |source| Error::Map { guest, len, source };
        let mapping = Mapping::of_guest(file, file_offset, size, place).map_err(unmapped)?;
        let file = kept(file).map_err(unmapped)?;
        let mut regions = self.regions.clone();
        let at = regions.partition_point(|r| r.info.guest < guest);
        regions.insert(
            at,
            Region {
                info,
                mapping: Arc::new(mapping),
                file,
            },
        );
        let mut removed = self.removed.clone();
        removed.subtract(&(guest..end));
        Ok(Self {
            regions,
            removed,
            quota: self.quota.clone(),
        })
    }

    /// Returns this table without one region (REM_MEM_REG). Guest address, user address and length must match.
    ///
    /// # Errors
    /// No region matches ([`Error::NotFound`]).
    pub fn without_region(&self, guest: u64, user: u64, len: u64) -> Result<Self, Error> {
        let same = |r: &Region| (r.info.guest, r.info.user, r.info.len) == (guest, user, len);
        let at = self
            .regions
            .iter()
            .position(same)
            .ok_or(Error::NotFound { guest, len })?;
        let mut memory = self.clone();
        let region = memory.regions.remove(at);
        memory.removed.add(region.info.guest_range());
        Ok(memory)
    }

    /// True if an earlier table had this guest address, and this one does not.
    pub fn was_removed(&self, guest: u64) -> bool {
        self.removed.contains(guest)
    }

    /// Returns the regions with their files, or `None` if the files were not kept.
    pub(crate) fn regions(&self) -> Option<Vec<(RegionInfo, Arc<File>)>> {
        let file = |region: &Region| Some((region.info, Arc::clone(region.file.as_ref()?)));
        self.regions.iter().map(file).collect()
    }

    /// Returns the regions, with their addresses for system calls.
    pub(crate) fn kernel_areas(&self) -> impl Iterator<Item = KernelArea> {
        self.regions.iter().map(|region| KernelArea {
            base: region.mapping.kernel_ptr(),
            len: usize::try_from(region.info.len).expect("mapped"),
            mapping: Arc::clone(&region.mapping),
        })
    }

    /// Returns the guest addresses that earlier tables had.
    pub(crate) fn removed_ranges(&self) -> &[Range<u64>] {
        self.removed.ranges()
    }

    /// Adds guest addresses that earlier tables had.
    pub(crate) fn with_removed(mut self, ranges: impl IntoIterator<Item = Range<u64>>) -> Self {
        ranges.into_iter().for_each(|range| self.removed.add(range));
        self.regions
            .iter()
            .for_each(|region| self.removed.subtract(&region.info.guest_range()));
        self
    }

    /// True if the frontend has not shared any memory yet.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// Returns the guest address after the last region, or 0 if there are no regions.
    pub fn end(&self) -> u64 {
        self.regions.last().map_or(0, |r| r.info.guest + r.info.len)
    }

    /// Resolves `len` bytes at an address in the frontend's own address space. All of them must be in one region.
    pub fn resolve_user(&self, user: u64, len: usize) -> Option<MappedArea> {
        let covers = |r: &&Region| {
            user.checked_sub(r.info.user)
                .is_some_and(|at| fits(at, len, r.info.len))
        };
        let region = self.regions.iter().find(covers)?;
        let offset = usize::try_from(user - region.info.user).ok()?;
        // SAFETY: offset + len is within the mapping (checked by `covers`).
        let base = unsafe { region.mapping.as_ptr().add(offset) };
        Some(MappedArea {
            base,
            len,
            mapping: Arc::clone(&region.mapping),
        })
    }
}

/// Checks that a file has at least `end` bytes: an access beyond its end would raise SIGBUS.
///
/// # Errors
/// The file is too short; returns its size.
fn check_eof(file: &File, end: u64) -> Result<(), u64> {
    match file.metadata() {
        Ok(metadata) if metadata.is_file() && metadata.len() < end => Err(metadata.len()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(len: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        file
    }

    fn info(guest: u64, len: u64, user: u64) -> RegionInfo {
        RegionInfo {
            guest,
            len,
            user,
            file_offset: 0,
        }
    }

    fn two() -> GuestMemory {
        GuestMemory::map([
            (info(0x10000, 0x2000, 0x7000_0000), file(0x2000)),
            (info(0, 0x1000, 0x6000_0000), file(0x1000)),
        ])
        .unwrap()
    }

    #[test]
    fn addresses_resolve_only_inside_regions() {
        let view = MemoryView::new(Arc::new(two()));
        for (addr, left) in [
            (0, 0x1000),
            (0xfff, 1),
            (0x10000, 0x2000),
            (0x11fff, 1),
            (0x10, 0xff0),
        ] {
            assert_eq!(view.resolve(addr).map(|r| r.1), Some(left), "{addr:#x}");
        }
        for addr in [0x1000, 0xffff, 0x12000, u64::MAX] {
            assert!(view.resolve(addr).is_none(), "{addr:#x}");
        }
        for addr in [0, 0xfff, 0x10000, 0x11fff] {
            let (host, _) = view.resolve(addr).unwrap();
            assert_eq!(view.guest_address(host), Some(addr), "{addr:#x}");
        }
        assert_eq!(view.guest_address(std::ptr::null()), None);
        assert!(MemoryView::new(Arc::default()).resolve(0).is_none());
    }

    #[test]
    fn guest_address_handles_regions_in_any_order() {
        let (low, high) = (1 << 62, 1 << 63);
        // Mapped in both orders, so that in one case the higher region is mapped at the lower host address.
        for order in [[low, high], [high, low]] {
            let table = order.map(|guest| (info(guest, 0x1000, 0), file(0x1000)));
            let view = MemoryView::new(Arc::new(GuestMemory::map(table).unwrap()));
            for addr in [low, low + 0xfff, high, high + 0xfff] {
                let (host, _) = view.resolve(addr).unwrap();
                assert_eq!(view.guest_address(host), Some(addr), "{addr:#x}");
            }
        }
    }

    #[test]
    fn user_addresses_must_lie_in_one_region() {
        let memory = two();
        assert!(memory.resolve_user(0x7000_0000, 0x2000).is_some());
        assert!(memory.resolve_user(0x7000_0001, 0x2000).is_none());
        assert!(memory.resolve_user(0x6fff_ffff, 2).is_none());
        assert!(memory.resolve_user(u64::MAX, 2).is_none());
    }

    #[test]
    fn bad_regions_are_refused() {
        let memory = two();
        for bad in [
            info(0x500, 0x10, 0),
            info(0xfff, 2, 0),
            info(0xf000, 0x1001, 0),
            info(0x20000, 0, 0),
            info(u64::MAX - 1, 0x1000, 0),
            info(0x20000, 0x1000, u64::MAX - 1),
            RegionInfo {
                file_offset: u64::MAX,
                ..info(0x20000, 0x1000, 0)
            },
        ] {
            assert!(
                matches!(
                    memory.with_region(bad, &file(0x1000)),
                    Err(Error::BadRange { .. })
                ),
                "{bad:?}"
            );
        }
        let past_eof = memory.with_region(info(0x20000, 0x2000, 0), &file(0x1000));
        assert!(matches!(past_eof, Err(Error::BeyondEof { size: 0x1000, .. })));
    }

    #[test]
    fn removing_a_region_needs_an_exact_match() {
        let memory = two();
        assert!(matches!(
            memory.without_region(0, 0x6000_0000, 0x800),
            Err(Error::NotFound { .. })
        ));
        let memory = memory.without_region(0, 0x6000_0000, 0x1000).unwrap();
        let view = MemoryView::new(Arc::new(memory));
        assert!(view.resolve(0).is_none() && view.resolve(0x10000).is_some());
    }

    #[test]
    fn removed_memory_is_remembered_until_given_back() {
        let memory = two().without_region(0, 0x6000_0000, 0x1000).unwrap();
        assert!([0, 0xfff].into_iter().all(|addr| memory.was_removed(addr)));
        assert!(
            [0x1000, 0x10000]
                .into_iter()
                .all(|addr| !memory.was_removed(addr))
        );
        let part = memory.with_region(info(0, 0x800, 0), &file(0x800)).unwrap();
        assert!(!part.was_removed(0x7ff) && part.was_removed(0x800));
        let table = [(info(0x800, 0x1800, 0), file(0x1800))];
        let replaced = part.replaced_by(table).unwrap();
        assert!(
            [0, 0x7ff, 0x10000, 0x11fff]
                .into_iter()
                .all(|addr| replaced.was_removed(addr))
        );
        assert!(
            [0x800, 0x1fff, 0x2000]
                .into_iter()
                .all(|addr| !replaced.was_removed(addr))
        );
    }
}
