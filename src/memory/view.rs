//! Translation of guest addresses on one IOThread.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use super::{GuestMemory, Region};

/// One IOThread's view of a snapshot: translation with a cache of the last two regions, shared by the requests that use
/// it. (Two: drivers may have headers in one region and data in another.)
#[derive(Debug)]
pub struct MemoryView {
    regions: Box<[ViewRegion]>,
    last: Cell<usize>,
    /// The region that was the last one before it.
    previous: Cell<usize>,
    /// Keeps the mappings alive.
    memory: Arc<GuestMemory>,
}

#[derive(Clone, Copy, Debug)]
struct ViewRegion {
    start: u64,
    len: u64,
    base: *mut u8,
}

impl MemoryView {
    /// A view for the calling thread.
    pub fn new(memory: Arc<GuestMemory>) -> Rc<Self> {
        let view = |r: &Region| ViewRegion {
            start: r.info.guest,
            len: r.info.len,
            base: r.mapping.as_ptr(),
        };
        let regions = memory.regions.iter().map(view).collect();
        Rc::new(Self {
            regions,
            last: Cell::new(0),
            previous: Cell::new(0),
            memory,
        })
    }

    /// Address of the guest's byte at `guest`, and how many bytes follow it in the same region (at least 1).
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

    /// True if a mapping of it is lost: see [`GuestMemory::is_lost`].
    pub(crate) fn is_lost(&self) -> bool {
        self.memory.is_lost()
    }

    /// The guest address of a byte that [`MemoryView::resolve`] has resolved.
    pub fn guest_address(&self, host: *const u8) -> Option<u64> {
        self.regions.iter().find_map(|r| {
            let offset = (host.addr() as u64).wrapping_sub(r.base.addr() as u64);
            (offset < r.len).then(|| r.start + offset)
        })
    }

    /// The region of this number, if it holds `guest`.
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
