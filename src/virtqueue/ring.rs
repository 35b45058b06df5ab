//! The three parts of a split virtqueue and the two indices the device owns.

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
mod setup;
mod used;

pub use setup::{MAX_QUEUE_SIZE, RingAddresses, RingError, RingFeatures};
use setup::{check_size, resolve};

/// Where writes to the used ring are logged.
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

    /// Next entry of the available ring to take.
    next_avail: Wrapping<u16>,
    /// The driver's index as last read; entries before it are visible to us.
    avail_idx: Wrapping<u16>,
    /// Next entry of the used ring to fill.
    next_used: Wrapping<u16>,
    /// The used index that the driver can see.
    published: Wrapping<u16>,
    /// The used index at the last notification decision; `None`: the next publication always notifies.
    signalled: Option<Wrapping<u16>>,
    /// The used index at the last decision to notify.
    notified: Wrapping<u16>,

    /// Survives this process, if the frontend keeps it.
    inflight: Option<Inflight>,
    /// Set while the VM migrates and the frontend wants the used ring logged.
    log: Option<UsedLog>,
    /// Chains that a predecessor had taken and not answered, the next one last.
    resubmit: Vec<u16>,
}

impl SplitRing {
    /// Resolves a ring of `size` entries that goes on at `base` (the available index to take next).
    ///
    /// # Errors
    /// Sizes, alignments and addresses that do not do.
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
        // The used index is the one thing that both a fresh and a resumed ring hold in guest memory.
        let used_idx = Wrapping(u16::from_le(ring.used_u16(2).load(Ordering::Relaxed)));
        (ring.next_used, ring.published, ring.notified) = (used_idx, used_idx, used_idx);
        Ok(ring)
    }

    /// Whether the frontend keeps track of the chains in flight.
    pub fn is_tracked(&self) -> bool {
        self.inflight.is_some()
    }

    /// Tracks the chains in flight in `area` from here on, and goes on where a predecessor has stopped: what it had
    /// taken and not answered is popped first, in the order in which it was taken.
    ///
    /// Returns whether there was a predecessor; the driver may have missed kicks and notifications then.
    ///
    /// # Errors
    /// An area that makes no sense, by itself or beside this ring.
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

    /// Chains that a predecessor has left in flight, and that were not popped yet.
    pub fn left_in_flight(&self) -> usize {
        self.resubmit.len()
    }

    /// Logs writes to the used ring from here on, or no more.
    pub fn set_log(&mut self, log: Option<&RingLog>) {
        let used = |ring: &RingLog| {
            ring.used.map(|addr| UsedLog {
                log: Arc::clone(&ring.log),
                addr,
            })
        };
        self.log = log.and_then(used);
    }

    /// Resolves the same ring again after a change of the memory table; its position is kept.
    ///
    /// # Errors
    /// Addresses that the new table does not hold; the ring is unchanged then and must not be used any more.
    pub fn remap(&mut self, memory: &GuestMemory, addresses: RingAddresses) -> Result<(), RingError> {
        [self.desc, self.avail, self.used] = resolve(memory, addresses, self.size)?;
        Ok(())
    }

    /// True if memory of the ring itself is lost.
    pub(crate) fn is_lost(&self) -> bool {
        [&self.desc, &self.avail, &self.used]
            .iter()
            .any(|area| area.is_lost())
    }

    /// True if the memory in which chains in flight are tracked is lost.
    pub(crate) fn inflight_is_lost(&self) -> bool {
        self.inflight.as_ref().is_some_and(Inflight::is_lost)
    }

    /// Entries in the ring.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The negotiated features.
    pub fn features(&self) -> RingFeatures {
        self.features
    }

    /// The available index that is taken next: what GET_VRING_BASE answers.
    pub fn next_avail(&self) -> u16 {
        self.next_avail.0
    }

    /// True as long as the driver has never put anything into this ring, as far as can be seen.
    pub(crate) fn is_untouched(&self) -> bool {
        // Relaxed: a number to be compared with nothing else.
        let idx = self.avail_u16(2).load(Ordering::Relaxed);
        (idx, self.next_avail.0, self.next_used.0) == (0, 0, 0)
    }

    /// Takes the next available descriptor head, if there is one (2.7.14).
    ///
    /// # Errors
    /// An impossible index or head: the ring must stop.
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

    /// True if an entry can be taken that was there when the driver's index was last read.
    #[inline]
    pub fn has_seen_work(&self) -> bool {
        !self.resubmit.is_empty() || self.avail_idx != self.next_avail
    }

    /// True if an entry could be taken. Reads the driver's index if need be.
    ///
    /// # Errors
    /// An impossible index: the ring must stop.
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

    /// Copies one descriptor out of the table; `index` is below the queue size.
    #[inline]
    pub(super) fn descriptor(&self, index: u16) -> Descriptor {
        assert!(index < self.size, "callers check descriptor indices");
        // SAFETY: within the table.
        unsafe { read_descriptor(self.desc.as_ptr().add(16 * usize::from(index))) }
    }

    fn avail_u16(&self, offset: usize) -> &AtomicU16 {
        debug_assert!(offset + 2 <= self.avail.len());
        // SAFETY: within the available ring (offsets stem from indices below the size); aligned to 2; shared with
        // the guest, hence atomic.
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

/// Copies a descriptor once, so that what was checked is what is used.
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
