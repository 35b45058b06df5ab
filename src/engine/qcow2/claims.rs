//! Clusters that a thread is about to map anew. Any thread.

use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The clusters of the disk whose entries are being changed. Writes to clusters that keep their entries need no claim.
#[derive(Debug, Default)]
pub(super) struct Claims {
    claimed: Mutex<Claimed>,
    released: Condvar,
}

#[derive(Debug, Default)]
struct Claimed {
    /// Ranges of cluster numbers, none of which overlap.
    ranges: Vec<Range<u64>>,
    /// Number of threads that wait. Telling them costs a system call.
    waiting: usize,
}

impl Claimed {
    fn overlaps(&self, range: &Range<u64>) -> bool {
        let overlaps = |other: &Range<u64>| other.start < range.end && range.start < other.end;
        self.ranges.iter().any(overlaps)
    }
}

/// A claim, until this is dropped. Whoever has one waits for no other.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    claims: &'a Claims,
    range: Range<u64>,
}

impl Claims {
    /// Waits until nobody has claimed any of these clusters, and claims them.
    pub(super) fn take(&self, range: Range<u64>) -> Claim<'_> {
        let mut claimed = self.lock();
        while claimed.overlaps(&range) {
            claimed.waiting += 1;
            claimed = self
                .released
                .wait(claimed)
                .unwrap_or_else(PoisonError::into_inner);
            claimed.waiting -= 1;
        }
        claimed.ranges.push(range.clone());
        Claim { claims: self, range }
    }

    /// Claims these clusters unless somebody has claimed one of them.
    pub(super) fn try_take(&self, range: Range<u64>) -> Option<Claim<'_>> {
        // Nobody holds the lock for long.
        let mut claimed = self.lock();
        if claimed.overlaps(&range) {
            return None;
        }
        claimed.ranges.push(range.clone());
        Some(Claim { claims: self, range })
    }

    /// Tells the threads that wait.
    fn tell(&self, claimed: MutexGuard<'_, Claimed>) {
        let waiting = claimed.waiting;
        drop(claimed);
        if waiting > 0 {
            self.released.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Claimed> {
        // Consistent even after a panic: each change is one call.
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim<'_> {
    /// Gives up all clusters from `end` on.
    pub(super) fn shorten(&mut self, end: u64) {
        if end >= self.range.end {
            return;
        }
        let mut claimed = self.claims.lock();
        if let Some(own) = claimed.ranges.iter_mut().find(|range| **range == self.range) {
            own.end = end;
        }
        self.range.end = end;
        self.claims.tell(claimed);
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut claimed = self.claims.lock();
        if let Some(place) = claimed.ranges.iter().position(|range| *range == self.range) {
            claimed.ranges.swap_remove(place);
        }
        self.claims.tell(claimed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn overlapping_claims_exclude_each_other() {
        let claims = Claims::default();
        let (inside, most) = (AtomicU32::new(0), AtomicU32::new(0));
        thread::scope(|scope| {
            for thread in 0..4_u64 {
                let (claims, inside, most) = (&claims, &inside, &most);
                scope.spawn(move || {
                    for round in 0..200 {
                        let mut claim = claims.take(round % 5..6 + thread);
                        let now = inside.fetch_add(1, Ordering::SeqCst) + 1;
                        most.fetch_max(now, Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        claim.shorten(5);
                    }
                });
            }
        });
        assert_eq!(most.into_inner(), 1);
        assert!(claims.lock().ranges.is_empty());
    }

    #[test]
    fn a_shortened_claim_leaves_the_rest() {
        let claims = Claims::default();
        let mut first = claims.take(0..10);
        assert!(claims.try_take(4..5).is_none());
        first.shorten(4);
        let second = claims.take(4..10);
        drop(first);
        let third = claims.take(0..4);
        drop((second, third));
    }
}
