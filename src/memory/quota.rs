//! Limits the regions that one frontend has mapped.
//!
//! A removed region stays mapped while a ring or a request in flight uses it. Without a limit, a frontend whose requests
//! are stuck could exchange its memory again and again, until the kernel allows the process no more mappings.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Maximum number of regions that a frontend may share, as announced for CONFIGURE_MEM_SLOTS (QEMU's own limit).
pub const MAX_REGIONS: usize = 509;

/// Maximum number of regions that one frontend has mapped: two whole memory tables.
pub(super) const MAX_MAPPED: usize = 2 * MAX_REGIONS;

/// The number of regions that one frontend has mapped. Copies share the number. Any thread.
#[derive(Clone, Debug, Default)]
pub(super) struct Quota(Arc<AtomicUsize>);

/// A counted region. Dropping it gives its place back.
#[derive(Debug)]
pub(super) struct Place(Quota);

impl Quota {
    /// Counts one more region, unless the frontend has [`MAX_MAPPED`] already.
    pub(super) fn take(&self) -> Option<Place> {
        let more = |mapped| (mapped < MAX_MAPPED).then_some(mapped + 1);
        // Relaxed: no other data depends on this number.
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.ok().map(|_| Place(self.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_share_one_limit() {
        let quota = Quota::default();
        let mut places: Vec<_> = (0..MAX_MAPPED).map(|_| quota.clone().take().unwrap()).collect();
        assert!(quota.take().is_none());
        assert!(Quota::default().take().is_some(), "another frontend");
        places.pop();
        assert!(quota.take().is_some());
    }
}
