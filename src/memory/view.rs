//! Translation of guest addresses on one IOThread.
//!
//! The resulting addresses are for system calls. Our own accesses to guest memory use a different address for the same
//! byte (see `guard`).

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use super::GuestMemory;
use super::region::Region;
use crate::io::{is_zero, own};

/// One IOThread's view of a snapshot, without the pages that were known to be lost when the view was made.
///
/// The requests that use a view share its cache of the last two regions. Two, because drivers may keep headers in one
/// region and data in another.
#[derive(Debug)]
pub struct MemoryView {
    regions: Box<[ViewRegion]>,
    last: Cell<usize>,
    /// The most recent region other than `last`.
    previous: Cell<usize>,
    /// Distance to subtract from an address for our own accesses.
    own_distance: usize,
    /// Keeps the mappings alive.
    memory: Arc<GuestMemory>,
}

#[derive(Clone, Copy, Debug)]
struct ViewRegion {
    start: u64,
    len: u64,
    /// Address of the first byte, for system calls.
    base: *mut u8,
}

impl ViewRegion {
    /// Splits a region into the pieces between its lost pages.
    fn pieces(region: &Region) -> Vec<Self> {
        let mut lost = region.mapping.lost();
        lost.sort_unstable_by_key(|range| range.start);
        let mut pieces = Vec::with_capacity(1 + lost.len());
        let mut from = 0;
        let end = region.info.len;
        for gap in lost.into_iter().chain(std::iter::once(end..end)) {
            let to = gap.start.min(end);
            if from < to {
                #[allow(clippy::cast_possible_truncation, reason = "below the length of a mapping")]
                // SAFETY: the offset is below the region's length.
                let base = unsafe { region.mapping.kernel_ptr().add(from as usize) };
                pieces.push(Self {
                    start: region.info.guest + from,
                    len: to - from,
                    base,
                });
            }
            from = from.max(gap.end);
        }
        pieces
    }
}

impl MemoryView {
    /// Creates a view for the calling thread.
    pub fn new(memory: Arc<GuestMemory>) -> Rc<Self> {
        let regions = memory.regions.iter().flat_map(ViewRegion::pieces).collect();
        let own_distance = memory.regions.first().map_or(0, |r| r.mapping.distance());
        Rc::new(Self {
            regions,
            own_distance,
            last: Cell::new(0),
            previous: Cell::new(0),
            memory,
        })
    }

    /// Resolves a guest address for system calls. Returns the host address and how many bytes of the region are left
    /// from there on (at least 1).
    ///
    /// The address stays valid as long as the view lives.
    #[inline]
    pub fn resolve(&self, guest: u64) -> Option<(*mut u8, u64)> {
        let region = match self.region(self.last.get(), guest) {
            Some(region) => region,
            None => self.find(guest)?,
        };
        let offset = guest - region.start;
        #[allow(clippy::cast_possible_truncation, reason = "below the length of a mapping")]
        // SAFETY: the offset is below the region's length.
        Some((unsafe { region.base.add(offset as usize) }, region.len - offset))
    }

    /// Returns the snapshot.
    pub(crate) fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Returns whether the frontend has taken this guest address away, and may give it back.
    #[cold]
    pub fn was_removed(&self, guest: u64) -> bool {
        self.memory.was_removed(guest)
    }

    /// Returns whether the first `len` bytes of the memory are zero, or all bytes of its first piece if that is shorter.
    pub(crate) fn starts_with_zeroes(&self, len: usize) -> bool {
        self.regions.first().is_none_or(|first| {
            let len = usize::try_from(first.len).map_or(len, |size| size.min(len));
            // SAFETY: within the region, at the address for our own accesses.
            unsafe { is_zero(own(first.base.cast(), self.own_distance), len) }
        })
    }

    /// The distance to subtract from a resolved address for our own accesses.
    pub(crate) fn own_distance(&self) -> usize {
        self.own_distance
    }

    /// Returns a new view of the same memory, if more of it is known to be lost now.
    pub(crate) fn without_lost(&self) -> Option<Rc<Self>> {
        let view = Self::new(Arc::clone(&self.memory));
        let bytes = |view: &Self| view.regions.iter().map(|r| r.len).sum::<u64>();
        (bytes(&view) < bytes(self)).then_some(view)
    }

    /// Returns the guest address of a host address, either one from [`MemoryView::resolve`] or the one for our own
    /// accesses.
    pub fn guest_address(&self, host: *const u8) -> Option<u64> {
        let find = |host: usize| {
            self.regions.iter().find_map(|r| {
                let offset = (host as u64).wrapping_sub(r.base.addr() as u64);
                (offset < r.len).then(|| r.start + offset)
            })
        };
        find(host.addr()).or_else(|| find(host.addr().wrapping_add(self.own_distance)))
    }

    /// Returns the region with index `at`, if it contains `guest`.
    #[inline]
    fn region(&self, at: usize, guest: u64) -> Option<&ViewRegion> {
        self.regions
            .get(at)
            .filter(|r| guest.wrapping_sub(r.start) < r.len)
    }

    #[inline]
    fn find(&self, guest: u64) -> Option<&ViewRegion> {
        let at = self.previous.get();
        let (at, region) = match self.region(at, guest) {
            Some(region) => (at, region),
            None => self.search(guest)?,
        };
        self.previous.set(self.last.replace(at));
        Some(region)
    }

    #[cold]
    fn search(&self, guest: u64) -> Option<(usize, &ViewRegion)> {
        let at = self
            .regions
            .partition_point(|r| r.start <= guest)
            .checked_sub(1)?;
        Some((at, self.region(at, guest)?))
    }
}
