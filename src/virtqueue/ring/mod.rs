//! The three parts of a split virtqueue, and the two indices that the device owns.

use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use virtio_queue::desc::split::Descriptor;
use vm_memory::ByteValued;

use super::inflight::{Inflight, InflightArea};
use crate::io::read_volatile_16;
use crate::memory::{DirtyLog, GuestMemory, MappedArea, RingLog};

mod handover;
mod index;
mod indices;
mod setup;
mod used;

pub use indices::{RingIndices, Wanted};
pub use setup::{MAX_QUEUE_SIZE, RingAddresses, RingError, RingFeatures};
use setup::{check_size, resolve};

/// The log of writes to the used ring.
#[derive(Debug)]
struct UsedLog {
    log: Arc<DirtyLog>,
    /// The used ring's guest address.
    addr: u64,
}

/// A running split virtqueue. IOThread only.
#[derive(Debug)]
pub struct SplitRing {
    size: u16,
    features: RingFeatures,
    desc: MappedArea,
    avail: MappedArea,
    used: MappedArea,

    /// Index of the next available entry to take.
    next_avail: Wrapping<u16>,
    /// The driver's available index as last read; entries before it are visible to us.
    avail_idx: Wrapping<u16>,
    /// Index of the next used entry to fill.
    next_used: Wrapping<u16>,
    /// The used index that the driver can see.
    published: Wrapping<u16>,
    /// The used index when we last decided whether to notify. `None` makes the next publication always notify.
    signalled: Option<Wrapping<u16>>,
    /// The used index when we last decided to notify.
    notified: Wrapping<u16>,

    /// In-flight tracking, in memory that survives this process if the frontend keeps it.
    inflight: Option<Inflight>,
    /// Set while the VM migrates, if the frontend wants writes to the used ring logged.
    log: Option<UsedLog>,
    /// Chains that a predecessor took but did not answer; the next one to pop is last.
    resubmit: Vec<u16>,
}

impl SplitRing {
    /// Resolves a ring of `size` entries that continues at `base` (the available index to take next).
    ///
    /// # Errors
    /// The size is invalid, or a part of the ring is misaligned or not mapped.
    pub fn new(
        memory: &GuestMemory,
        addresses: RingAddresses,
        size: u32,
        base: u16,
        features: RingFeatures,
    ) -> Result<Self, RingError> {
        let size = check_size(size)?;
        let [desc, avail, used] = resolve(memory, addresses, size)?;
        let mut ring = Self {
            size,
            features,
            desc,
            avail,
            used,
            next_avail: Wrapping(base),
            avail_idx: Wrapping(base),
            next_used: Wrapping(0),
            published: Wrapping(0),
            signalled: None,
            notified: Wrapping(0),
            inflight: None,
            log: None,
            resubmit: Vec::new(),
        };
        // The used index is valid in guest memory whether the ring is fresh or resumed.
        let used_idx = Wrapping(u16::from_le(ring.used_u16(2).load(Ordering::Relaxed)));
        (ring.next_used, ring.published, ring.notified) = (used_idx, used_idx, used_idx);
        Ok(ring)
    }

    /// Returns whether the chains in flight are tracked in memory that the frontend keeps.
    pub fn is_tracked(&self) -> bool {
        self.inflight.is_some()
    }

    /// Tracks the chains in flight in `area` from now on, and continues where a predecessor stopped.
    ///
    /// Chains that the predecessor took but did not answer are popped first, in the order in which it took them.
    ///
    /// Returns whether there was a predecessor. If so, kicks and notifications may have been lost.
    ///
    /// # Errors
    /// The contents of the area are invalid, or contradict this ring.
    pub fn track(&mut self, area: InflightArea) -> Result<bool, RingError> {
        let (inflight, recovered) = Inflight::resume(area, self.size, self.next_used.0)?;
        if recovered.resumed {
            #[allow(clippy::cast_possible_truncation, reason = "at most the ring's size")]
            let taken = Wrapping(recovered.heads.len() as u16);
            self.next_avail = self.next_used + taken;
            self.avail_idx = self.next_avail;
        }
        self.inflight = Some(inflight);
        self.resubmit = recovered.heads;
        Ok(recovered.resumed)
    }

    /// Returns how many chains that a predecessor left in flight were not popped yet.
    pub fn left_in_flight(&self) -> usize {
        self.resubmit.len()
    }

    /// Starts logging writes to the used ring, or stops if `log` is `None` or does not cover the used ring.
    pub fn set_log(&mut self, log: Option<&RingLog>) {
        let used = |ring: &RingLog| {
            ring.used.map(|addr| UsedLog {
                log: Arc::clone(&ring.log),
                addr,
            })
        };
        self.log = log.and_then(used);
    }

    /// Resolves the same ring again after the memory table changed. The ring keeps its position.
    ///
    /// # Errors
    /// The new table does not map the whole ring. The ring is unchanged then, and must not be used any more.
    pub fn remap(&mut self, memory: &GuestMemory, addresses: RingAddresses) -> Result<(), RingError> {
        [self.desc, self.avail, self.used] = resolve(memory, addresses, self.size)?;
        Ok(())
    }

    /// Returns whether part of the ring's own memory is lost.
    pub(crate) fn is_lost(&self) -> bool {
        [&self.desc, &self.avail, &self.used]
            .iter()
            .any(|area| area.is_lost())
    }

    /// Returns whether part of the memory that tracks the chains in flight is lost.
    pub(crate) fn inflight_is_lost(&self) -> bool {
        self.inflight.as_ref().is_some_and(Inflight::is_lost)
    }

    /// The number of entries in the ring.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The negotiated features.
    pub fn features(&self) -> RingFeatures {
        self.features
    }

    /// The available index to take next, which is the answer to GET_VRING_BASE.
    pub fn next_avail(&self) -> u16 {
        self.next_avail.0
    }

    /// Returns whether the driver does not seem to have used this ring yet: all indices are still 0.
    pub(crate) fn is_untouched(&self) -> bool {
        // Relaxed: no other access depends on this number.
        let idx = self.avail_u16(2).load(Ordering::Relaxed);
        (idx, self.next_avail.0, self.next_used.0) == (0, 0, 0)
    }

    /// Returns whether the driver's parts of the ring are all zero: the descriptor table and the available ring.
    pub(crate) fn is_zero(&self) -> bool {
        self.desc.is_zero() && self.avail.is_zero()
    }

    /// Takes the next available descriptor head, if there is one (2.7.14).
    ///
    /// # Errors
    /// The driver's index or the head is invalid. The ring must stop.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<u16>, RingError> {
        if let Some(head) = self.resubmit.pop() {
            return Ok(Some(head));
        }
        if self.avail_idx == self.next_avail && !self.refresh()? {
            return Ok(None);
        }
        let slot = index::slot(self.next_avail, self.size);
        // Relaxed: ordered by the acquire load of the index in `refresh`.
        let head = u16::from_le(self.avail_u16(4 + 2 * slot).load(Ordering::Relaxed));
        if head >= self.size {
            return Err(RingError::BadHead {
                head,
                size: self.size,
            });
        }
        if let Some(inflight) = &mut self.inflight
            && !inflight.take(head)
        {
            return Err(RingError::InFlight(head));
        }
        self.next_avail += 1;
        Ok(Some(head))
    }

    /// Undoes the last [`SplitRing::pop`], which returned `head`. The next call returns `head` again.
    ///
    /// `left_behind`: a predecessor left the chain in flight, so it stays in flight.
    #[cold]
    pub fn put_back(&mut self, head: u16, left_behind: bool) {
        if left_behind {
            self.resubmit.push(head);
            return;
        }
        self.next_avail -= 1;
        if let Some(inflight) = &mut self.inflight {
            inflight.put_back(head);
        }
    }

    /// Returns whether an entry can be taken without reading the driver's index again.
    #[inline]
    pub fn has_seen_work(&self) -> bool {
        !self.resubmit.is_empty() || self.avail_idx != self.next_avail
    }

    /// Returns whether an entry can be taken. Reads the driver's index if necessary.
    ///
    /// # Errors
    /// The driver's index is invalid. The ring must stop.
    #[inline]
    pub fn has_work(&mut self) -> Result<bool, RingError> {
        Ok(self.has_seen_work() || self.refresh()?)
    }

    #[inline]
    fn refresh(&mut self) -> Result<bool, RingError> {
        // Acquire: pairs with the driver's release of the index; the entries and descriptors before it are visible.
        let idx = Wrapping(u16::from_le(self.avail_u16(2).load(Ordering::Acquire)));
        if index::available(idx, self.next_avail, self.size).is_none() {
            return Err(RingError::BadAvailIndex {
                idx: idx.0,
                next: self.next_avail.0,
                size: self.size,
            });
        }
        self.avail_idx = idx;
        Ok(idx != self.next_avail)
    }

    /// Copies one descriptor out of the table. The caller has checked that `index` is below the queue size.
    #[inline]
    pub(super) fn descriptor(&self, index: u16) -> Descriptor {
        assert!(index < self.size, "callers check descriptor indices");
        // SAFETY: within the table.
        unsafe { read_descriptor(self.desc.as_ptr().add(16 * usize::from(index))) }
    }

    fn avail_u16(&self, offset: usize) -> &AtomicU16 {
        debug_assert!(offset + 2 <= self.avail.len());
        // SAFETY: within the available ring (offsets are computed from indices below the size); aligned to 2; shared
        // with the guest, hence atomic.
        unsafe { AtomicU16::from_ptr(self.avail.as_ptr().add(offset).cast()) }
    }

    fn used_u16(&self, offset: usize) -> &AtomicU16 {
        debug_assert!(offset + 2 <= self.used.len());
        // SAFETY: as for `avail_u16`, within the used ring.
        unsafe { AtomicU16::from_ptr(self.used.as_ptr().add(offset).cast()) }
    }

    fn used_u32(&self, offset: usize) -> &AtomicU32 {
        debug_assert!(offset + 4 <= self.used.len());
        // SAFETY: as for `used_u16`; elements are aligned to 4.
        unsafe { AtomicU32::from_ptr(self.used.as_ptr().add(offset).cast()) }
    }
}

/// Copies a descriptor once, so that the caller uses what it has checked.
///
/// # Safety
/// `ptr` is valid for 16 bytes (it may be unaligned).
#[inline]
pub(super) unsafe fn read_descriptor(ptr: *const u8) -> Descriptor {
    // SAFETY: valid (the caller's promise).
    let bytes = unsafe { read_volatile_16(ptr) };
    let mut descriptor = Descriptor::default();
    descriptor.as_mut_slice().copy_from_slice(&bytes);
    descriptor
}
