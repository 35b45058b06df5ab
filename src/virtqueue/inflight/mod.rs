//! In-flight tracking: a record of the chains that the device holds, in memory that outlives the process
//! (INFLIGHT_SHMFD).
//!
//! The frontend keeps the memory and hands it to the next backend of the ring. A kill stops the process between two
//! instructions. So after any prefix of the stores below, the memory must tell the successor which chains were
//! answered. All of them are release stores: none may move before another one, or before the store of the used index
//! that they surround. No store is a syscall or a locked instruction.
//!
//! IOThread only, except [`InflightRegion`], which belongs to the control thread.

use std::num::Wrapping;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use crate::memory::MappedArea;

#[cfg(test)]
pub(super) mod model;
mod region;
#[cfg(test)]
mod tests;

pub use region::{InflightRegion, RegionError, RegionLayout, SpareByte};

/// Layout of one queue's part, in the host's byte order: a header, then one entry per descriptor.
const FEATURES: usize = 0;
const VERSION: usize = 8;
const DESC_NUM: usize = 10;
const LAST_BATCH_HEAD: usize = 12;
const USED_IDX: usize = 14;
const HEADER_LEN: usize = 16;
const ENTRY_LEN: usize = 16;
/// Offsets within an entry; the rest of the entry is padding.
const IN_FLIGHT: usize = 0;
const NEXT: usize = 6;
const COUNTER: usize = 8;

/// The only version that exists. Unused memory has 0 here.
const CURRENT_VERSION: u16 = 1;

/// The reason why a queue's part of an in-flight region cannot be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InflightError {
    /// The part has unknown feature bits.
    #[error("in-flight region has unknown features {0:#x}")]
    Features(u64),
    /// The part has an unknown version.
    #[error("in-flight region has version {0}, but only version {CURRENT_VERSION} is supported")]
    Version(u16),
    /// The part was made for queues of another size.
    #[error("in-flight region is for queues of {found} descriptors, not {expected}")]
    Size {
        /// The size that the part was made for.
        found: u16,
        /// The size that is needed, or more.
        expected: u16,
    },
    /// A descriptor's mark is neither 0 nor 1, or is 1 in an unused part or for a descriptor beyond the ring.
    #[error("in-flight region marks descriptor {head} with the invalid value {mark}")]
    Mark {
        /// The descriptor.
        head: u16,
        /// Its mark.
        mark: u8,
    },
    /// The ring's used index is further ahead of the recorded one than one batch can be.
    #[error("in-flight region has used index {recorded}, but the ring has {ring}")]
    UsedIndex {
        /// The used index in the region.
        recorded: u16,
        /// The used index in the ring.
        ring: u16,
    },
    /// The list of the last batch leaves the table or has a loop.
    #[error("in-flight region's last batch lists descriptor {0}, which is out of range or listed twice")]
    BatchList(u16),
    /// Two chains have the same counter, or a counter is at its maximum.
    #[error("in-flight region has descriptor {head} with impossible counter {counter}")]
    Counter {
        /// The descriptor.
        head: u16,
        /// Its counter.
        counter: u64,
    },
}

/// One queue's part of a region, checked as far as possible without its ring.
#[derive(Debug)]
pub struct InflightArea {
    area: MappedArea,
    desc_num: u16,
}

/// The state that a predecessor left in an area.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Recovered {
    /// Chains in flight. The chain taken last is first, so that popping off the end keeps the order.
    pub(super) heads: Vec<u16>,
    /// True if the area had been used before, so that the ring's position follows from it.
    pub(super) resumed: bool,
}

/// Tracks the chains of one ring.
#[derive(Debug)]
pub(super) struct Inflight {
    area: InflightArea,
    /// The counter for the next chain taken.
    counter: u64,
    /// First entry in the list of the chains of the last batch.
    last_batch_head: u16,
    /// Chains put into the used ring but not published.
    batch: Vec<u16>,
}

/// A point at which a test may simulate a kill: before every store that recovery depends on.
#[inline(always)]
pub(super) fn stop_point() {
    #[cfg(test)]
    model::stop_point();
}

impl InflightArea {
    /// Checks the area as far as possible without its ring.
    fn new(area: MappedArea, desc_num: u16) -> Result<Self, InflightError> {
        let area = Self { area, desc_num };
        area.check(desc_num)?;
        Ok(area)
    }

    /// Checks the area against a ring of `ring_size` descriptors, and returns whether the area has been used before.
    fn check(&self, ring_size: u16) -> Result<bool, InflightError> {
        let features = self.u64_at(FEATURES).load(Ordering::Relaxed);
        // Acquire: pairs with the release stores of the predecessor, which has ended; all reads below see its final
        // values.
        let version = self.u16_at(VERSION).load(Ordering::Acquire);
        let found = self.u16_at(DESC_NUM).load(Ordering::Relaxed);
        let used = version != 0;
        if features != 0 {
            return Err(InflightError::Features(features));
        }
        if used && version != CURRENT_VERSION {
            return Err(InflightError::Version(version));
        }
        if used && found != self.desc_num || self.desc_num < ring_size {
            let found = if used { found } else { self.desc_num };
            return Err(InflightError::Size {
                found,
                expected: ring_size.max(self.desc_num),
            });
        }
        for head in 0..self.desc_num {
            let mark = self.mark(head).load(Ordering::Relaxed);
            if mark > 1 || mark == 1 && (!used || head >= ring_size) {
                return Err(InflightError::Mark { head, mark });
            }
        }
        Ok(used)
    }

    fn u64_at(&self, offset: usize) -> &AtomicU64 {
        debug_assert!(offset + 8 <= self.area.len() && offset.is_multiple_of(8));
        // SAFETY: within the area and aligned (it starts at a multiple of 64); shared with the frontend, hence atomic.
        unsafe { AtomicU64::from_ptr(self.area.as_ptr().add(offset).cast()) }
    }

    fn u16_at(&self, offset: usize) -> &AtomicU16 {
        debug_assert!(offset + 2 <= self.area.len() && offset.is_multiple_of(2));
        // SAFETY: as for `u64_at`.
        unsafe { AtomicU16::from_ptr(self.area.as_ptr().add(offset).cast()) }
    }

    fn mark(&self, head: u16) -> &AtomicU8 {
        let offset = self.entry(head) + IN_FLIGHT;
        // SAFETY: within the area (`entry`); shared with the frontend, hence atomic.
        unsafe { AtomicU8::from_ptr(self.area.as_ptr().add(offset)) }
    }

    /// Returns the offset of a descriptor's entry. All its fields are in the area.
    #[inline]
    fn entry(&self, head: u16) -> usize {
        assert!(head < self.desc_num, "heads are checked against the ring size");
        HEADER_LEN + ENTRY_LEN * usize::from(head)
    }

    fn set_u16(&self, offset: usize, value: u16) {
        stop_point();
        self.u16_at(offset).store(value, Ordering::Release);
    }

    fn set_mark(&self, head: u16, mark: u8) {
        stop_point();
        self.mark(head).store(mark, Ordering::Release);
    }

    fn set_counter(&self, head: u16, counter: u64) {
        stop_point();
        let entry = self.entry(head);
        self.u64_at(entry + COUNTER).store(counter, Ordering::Release);
    }

    fn counter(&self, head: u16) -> u64 {
        self.u64_at(self.entry(head) + COUNTER).load(Ordering::Relaxed)
    }

    /// Updates the marks to match the ring's used index: a predecessor may have been killed after publishing a batch.
    ///
    /// A kill during this function does no harm, because the recorded index is stored last.
    fn settle_last_batch(&self, ring_size: u16, used_idx: u16) -> Result<(), InflightError> {
        let recorded = self.u16_at(USED_IDX).load(Ordering::Relaxed);
        let batch = (Wrapping(used_idx) - Wrapping(recorded)).0;
        // With nothing in flight there is nothing to settle and any index is accepted: a frontend may keep the region
        // across a reset of the driver.
        let idle = (0..ring_size).all(|head| self.mark(head).load(Ordering::Relaxed) == 0);
        if batch > ring_size && !idle {
            let ring = used_idx;
            return Err(InflightError::UsedIndex { recorded, ring });
        }
        if !idle {
            let mut seen = vec![false; usize::from(ring_size)];
            let mut head = self.u16_at(LAST_BATCH_HEAD).load(Ordering::Relaxed);
            for _ in 0..batch {
                match seen.get_mut(usize::from(head)) {
                    Some(seen) if !*seen => *seen = true,
                    _ => return Err(InflightError::BatchList(head)),
                }
                self.set_mark(head, 0);
                head = self.u16_at(self.entry(head) + NEXT).load(Ordering::Relaxed);
            }
        }
        self.set_u16(USED_IDX, used_idx);
        Ok(())
    }

    /// Returns the chains in flight with their counters; the chain taken last is first.
    fn marked(&self, ring_size: u16) -> Result<Vec<(u64, u16)>, InflightError> {
        let heads = (0..ring_size).filter(|&head| self.mark(head).load(Ordering::Relaxed) == 1);
        let mut marked: Vec<_> = heads.map(|head| (self.counter(head), head)).collect();
        marked.sort_unstable_by(|a, b| b.cmp(a));
        let impossible = |&(counter, head): &(u64, u16)| InflightError::Counter { head, counter };
        if let Some(last) = marked.first().filter(|last| last.0 == u64::MAX) {
            return Err(impossible(last));
        }
        match marked.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            Some(pair) => Err(impossible(&pair[0])),
            None => Ok(marked),
        }
    }
}

impl Inflight {
    /// Continues where a predecessor stopped, or starts in an unused area.
    ///
    /// `used_idx` is the used index in the ring.
    pub(super) fn resume(
        area: InflightArea,
        ring_size: u16,
        used_idx: u16,
    ) -> Result<(Self, Recovered), InflightError> {
        // Checked again, because the frontend can write to the area at any time.
        let resumed = area.check(ring_size)?;
        if resumed {
            area.settle_last_batch(ring_size, used_idx)?;
        } else {
            area.set_u16(DESC_NUM, area.desc_num);
            area.set_u16(USED_IDX, used_idx);
            area.set_u16(VERSION, CURRENT_VERSION);
        }
        let marked = area.marked(ring_size)?;
        let last_batch_head = area.u16_at(LAST_BATCH_HEAD).load(Ordering::Relaxed);
        let inflight = Self {
            counter: marked.first().map_or(0, |last| last.0 + 1),
            last_batch_head,
            batch: Vec::with_capacity(usize::from(ring_size)),
            area,
        };
        let heads = marked.into_iter().map(|(_, head)| head).collect();
        Ok((inflight, Recovered { heads, resumed }))
    }

    /// Returns whether the area's memory is lost.
    pub(super) fn is_lost(&self) -> bool {
        self.area.area.is_lost()
    }

    /// Records that the device took a chain. Returns false and changes nothing if the chain is already in flight.
    #[inline]
    pub(super) fn take(&mut self, head: u16) -> bool {
        if self.area.mark(head).load(Ordering::Relaxed) != 0 {
            return false;
        }
        self.area.set_counter(head, self.counter);
        self.counter = self.counter.wrapping_add(1);
        self.area.set_mark(head, 1);
        true
    }

    /// Records that the chain taken last is still available to the device, and not in flight.
    pub(super) fn put_back(&mut self, head: u16) {
        self.area.set_mark(head, 0);
    }

    /// Records that a chain was put into the used ring.
    #[inline]
    pub(super) fn put_used(&mut self, head: u16) {
        let entry = self.area.entry(head);
        self.area.set_u16(entry + NEXT, self.last_batch_head);
        self.last_batch_head = head;
        self.batch.push(head);
    }

    /// Call this right before the used index is stored.
    ///
    /// One store serves the whole batch: a successor follows the list only if the used index differs from the recorded
    /// one.
    #[inline]
    pub(super) fn before_publish(&self) {
        self.area.set_u16(LAST_BATCH_HEAD, self.last_batch_head);
    }

    /// Call this right after the used index was stored.
    #[inline]
    pub(super) fn after_publish(&mut self, used_idx: u16) {
        for &head in &self.batch {
            self.area.set_mark(head, 0);
        }
        self.batch.clear();
        self.area.set_u16(USED_IDX, used_idx);
    }
}
