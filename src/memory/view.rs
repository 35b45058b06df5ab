//! Translation of guest addresses on one IOThread.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use super::{GuestMemory, Region};

/// One IOThread's view of a snapshot: translation with a last-hit cache, shared by the requests that use it.
#[derive(Debug)]
pub struct MemoryView {
    regions: Box<[ViewRegion]>,
    last: Cell<usize>,
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
            memory,
        })
    }

    /// Address of the guest's byte at `guest`, and how many bytes follow it in the same region (at least 1).
    ///
    /// The address stays valid as long as the view lives.
    #[inline]
    pub fn resolve(&self, guest: u64) -> Option<(*mut u8, u64)> {
        let last = self.last.get();
        let hit = self
            .regions
            .get(last)
            .filter(|r| guest.wrapping_sub(r.start) < r.len);
        let region = match hit {
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

    #[cold]
    fn find(&self, guest: u64) -> Option<&ViewRegion> {
        let at = self
            .regions
            .partition_point(|r| r.start <= guest)
            .checked_sub(1)?;
        let region = &self.regions[at];
        if guest - region.start >= region.len {
            return None;
        }
        self.last.set(at);
        Some(region)
    }
}
