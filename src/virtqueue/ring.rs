//! The three parts of a split virtqueue and the two indices the device owns.

use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};

use virtio_queue::desc::split::Descriptor;
use vm_memory::ByteValued;

use super::inflight::{self, Inflight, InflightArea, InflightError};
use crate::memory::{DirtyLog, GuestMemory, MappedArea, RingLog};

/// Largest queue that is served: a power of two.
pub const MAX_QUEUE_SIZE: u16 = 1024;

const NO_NOTIFY: u16 = 1; // VIRTQ_USED_F_NO_NOTIFY
const NO_INTERRUPT: u16 = 1; // VIRTQ_AVAIL_F_NO_INTERRUPT

/// Where the frontend says that the parts of a ring are, in its own address space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingAddresses {
    /// Descriptor table (2.7.5), aligned to 16.
    pub desc: u64,
    /// Available ring (2.7.6), aligned to 2.
    pub avail: u64,
    /// Used ring (2.7.8), aligned to 4.
    pub used: u64,
}

/// The negotiated features that concern a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingFeatures {
    /// VIRTIO_F_EVENT_IDX: suppression by `used_event` and `avail_event` instead of flags.
    pub event_idx: bool,
    /// VIRTIO_F_INDIRECT_DESC: chains may lie in tables of their own.
    pub indirect: bool,
}

/// Why a ring cannot be set up or must stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// Zero, no power of two, or above [`MAX_QUEUE_SIZE`].
    #[error("queue size {0} is not a power of two from 1 to {MAX_QUEUE_SIZE}")]
    BadSize(u32),
    /// A part does not lie in one region of the memory table.
    #[error("{part} at {addr:#x} ({len} bytes) is not in the frontend's memory table")]
    NotMapped {
        /// Which part.
        part: &'static str,
        /// Its address in the frontend's address space.
        addr: u64,
        /// Its size in bytes.
        len: usize,
    },
    /// A part is not aligned as the specification asks (2.7).
    #[error("{part} at {addr:#x} is not aligned to {align} bytes")]
    Misaligned {
        /// Which part.
        part: &'static str,
        /// Its address in the frontend's address space.
        addr: u64,
        /// The alignment in bytes.
        align: usize,
    },
    /// The driver claims more available entries than the ring has.
    #[error("available index {idx} is more than the queue size {size} ahead of {next}")]
    BadAvailIndex {
        /// The driver's index.
        idx: u16,
        /// Our position.
        next: u16,
        /// Entries in the ring.
        size: u16,
    },
    /// An available entry names a descriptor that does not exist.
    #[error("available ring names descriptor {head} of {size}")]
    BadHead {
        /// The descriptor's index.
        head: u16,
        /// Entries in the descriptor table.
        size: u16,
    },
    /// The driver made a chain available that the device still has.
    #[error("descriptor chain {0} is in flight already")]
    InFlight(u16),
    /// What is known of the chains in flight makes no sense.
    #[error(transparent)]
    Region(#[from] InflightError),
}

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
        let slot = usize::from(self.next_avail.0 & (self.size - 1));
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

    /// True if an entry could be taken. Reads the driver's index if need be.
    ///
    /// # Errors
    /// An impossible index: the ring must stop.
    #[inline]
    pub fn has_work(&mut self) -> Result<bool, RingError> {
        Ok(!self.resubmit.is_empty() || self.avail_idx != self.next_avail || self.refresh()?)
    }

    #[inline]
    fn refresh(&mut self) -> Result<bool, RingError> {
        // Acquire: pairs with the driver's release of the index; the entries and descriptors before it are visible.
        let idx = Wrapping(u16::from_le(self.avail_u16(2).load(Ordering::Acquire)));
        if (idx - self.next_avail).0 > self.size {
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

    /// Puts a completed chain into the used ring; the driver sees it after [`SplitRing::publish`].
    ///
    /// `len` counts the bytes written into the chain, the status byte included.
    #[inline]
    pub fn push_used(&mut self, head: u16, len: u32) {
        if let Some(inflight) = &mut self.inflight {
            inflight.put_used(head);
        }
        let slot = usize::from(self.next_used.0 & (self.size - 1));
        // Relaxed: made visible by the release store of the index in `publish`.
        self.used_u32(4 + 8 * slot)
            .store(u32::from(head).to_le(), Ordering::Relaxed);
        self.used_u32(8 + 8 * slot).store(len.to_le(), Ordering::Relaxed);
        self.next_used += 1;
    }

    /// Completed chains that the driver cannot see yet.
    pub fn unpublished(&self) -> u16 {
        (self.next_used - self.published).0
    }

    /// Shows everything pushed to the driver, and says whether it wants to be notified (2.7.7, 2.7.8).
    #[inline]
    pub fn publish(&mut self) -> bool {
        if let Some(inflight) = &self.inflight {
            inflight.before_publish();
        }
        inflight::stop_point();
        // Release: pairs with the driver's acquire load of the index; elements, data and status bytes are visible.
        self.used_u16(2)
            .store(self.next_used.0.to_le(), Ordering::Release);
        self.published = self.next_used;
        if let Some(inflight) = &mut self.inflight {
            inflight.after_publish(self.next_used.0);
        }
        self.log_used();
        // SeqCst: our index before the driver's used_event or flags. Pairs with the driver's full barrier between
        // its store of those and its last look at the index.
        fence(Ordering::SeqCst);
        let wanted = match self.signalled.replace(self.next_used) {
            None => true,
            Some(old) if self.features.event_idx => need_event(self.used_event(), self.next_used, old),
            Some(_) => u16::from_le(self.avail_u16(0).load(Ordering::Relaxed)) & NO_INTERRUPT == 0,
        };
        if wanted {
            self.notified = self.next_used;
        }
        wanted
    }

    /// The index after which the driver wants to be notified (with EVENT_IDX).
    fn used_event(&self) -> Wrapping<u16> {
        let event = self.avail_u16(4 + 2 * usize::from(self.size));
        Wrapping(u16::from_le(event.load(Ordering::Relaxed)))
    }

    /// If the driver waits for an index that was published without notifying it: that index, and what is published.
    ///
    /// A driver that is just looking at the ring gives the same picture, but not for long.
    pub fn missed_event(&self) -> Option<(u16, u16)> {
        let event = self.used_event();
        let missed = self.features.event_idx && need_event(event, self.published, self.notified);
        missed.then_some((event.0, self.published.0))
    }

    /// The driver was notified of all that is published.
    pub fn set_notified(&mut self) {
        self.notified = self.published;
    }

    /// The next [`SplitRing::publish`] notifies whatever the driver asked for (a new call fd, a reconnect).
    pub fn force_notification(&mut self) {
        self.signalled = None;
    }

    /// Asks the driver for kicks from here on. Look at the ring once more after this, or a kick is lost.
    pub fn enable_kicks(&mut self) {
        if self.features.event_idx {
            let event = self.used_u16(4 + 8 * usize::from(self.size));
            event.store(self.next_avail.0.to_le(), Ordering::Relaxed);
        } else {
            self.used_u16(0).store(0, Ordering::Relaxed);
        }
        self.log_used();
        // SeqCst: our wish before our last look at the index. Pairs with the driver's full barrier between its
        // store of the index and its look at avail_event or flags.
        fence(Ordering::SeqCst);
    }

    /// Tells the driver that no kick is needed: the ring is looked at anyway.
    ///
    /// With EVENT_IDX there is nothing to do: an avail_event that is left behind asks for nothing.
    pub fn disable_kicks(&mut self) {
        if !self.features.event_idx {
            self.used_u16(0).store(NO_NOTIFY.to_le(), Ordering::Relaxed);
            self.log_used();
        }
    }

    /// Marks the used ring dirty, all of it: it has three pages at most.
    #[inline]
    fn log_used(&self) {
        if let Some(UsedLog { log, addr }) = &self.log {
            log.mark(*addr, self.used.len() as u64);
        }
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
    // SAFETY: valid (the caller's promise); volatile because the guest may write at any time.
    let bytes = unsafe { ptr.cast::<[u8; 16]>().read_volatile() };
    let mut descriptor = Descriptor::default();
    descriptor.as_mut_slice().copy_from_slice(&bytes);
    descriptor
}

/// True if the driver wants to know of an index in (old, new] that is beyond `event` (2.7.10).
#[inline]
fn need_event(event: Wrapping<u16>, new: Wrapping<u16>, old: Wrapping<u16>) -> bool {
    new - event - Wrapping(1) < new - old
}

fn check_size(size: u32) -> Result<u16, RingError> {
    match u16::try_from(size) {
        Ok(n) if n.is_power_of_two() && n <= MAX_QUEUE_SIZE => Ok(n),
        _ => Err(RingError::BadSize(size)),
    }
}

fn resolve(memory: &GuestMemory, at: RingAddresses, size: u16) -> Result<[MappedArea; 3], RingError> {
    let n = usize::from(size);
    let part = |part, addr: u64, len, align: usize| {
        let area = memory
            .resolve_user(addr, len)
            .ok_or(RingError::NotMapped { part, addr, len })?;
        // What we access is the host's address; it has the guest's alignment because mappings start at pages.
        if area.as_ptr().addr().is_multiple_of(align) {
            Ok(area)
        } else {
            Err(RingError::Misaligned { part, addr, align })
        }
    };
    Ok([
        part("descriptor table", at.desc, 16 * n, 16)?,
        part("available ring", at.avail, 6 + 2 * n, 2)?,
        part("used ring", at.used, 6 + 8 * n, 4)?,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_is_needed_only_when_crossed_for_every_index_and_batch() {
        for new in 0..=u16::MAX {
            for batch in [1u16, 2, 64, 1024] {
                let (new, old) = (Wrapping(new), Wrapping(new) - Wrapping(batch));
                // The driver asks for a notification once the entry `event` is used: entries old..new are.
                for (event, expected) in [
                    (old, true),
                    (new - Wrapping(1), true),
                    (new, false),
                    (old - Wrapping(1), false),
                ] {
                    assert_eq!(need_event(event, new, old), expected, "{event} {new} {old}");
                }
            }
        }
    }

    #[test]
    fn each_write_to_the_used_ring_is_logged_while_that_is_on() {
        use std::os::unix::fs::FileExt;

        use crate::virtqueue::inflight::model::Driver;

        let file = crate::memory::memfd(c"log", 4096).unwrap();
        let log = Arc::new(DirtyLog::map(file.try_clone().unwrap(), 0, 8).unwrap());
        let (mut driver, used) = (Driver::new(8, 0, false), Some(0x3000));
        let mut ring = driver.device().ring;
        driver.submit(0);
        let writes: [fn(&mut SplitRing); 3] = [
            |ring| {
                let head = ring.pop().unwrap().unwrap();
                ring.push_used(head, 1);
                ring.publish();
            },
            SplitRing::disable_kicks,
            SplitRing::enable_kicks,
        ];
        for write in writes {
            file.write_all_at(&[0], 0).unwrap();
            let log = Arc::clone(&log);
            ring.set_log(Some(&RingLog { log, used }));
            write(&mut ring);
            ring.set_log(None);
            let mut byte = [0];
            file.read_exact_at(&mut byte, 0).unwrap();
            assert_eq!(byte, [0b1000]);
        }
        file.write_all_at(&[0], 0).unwrap();
        ring.publish();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 0).unwrap();
        assert_eq!(byte, [0], "logging is off");
    }

    #[test]
    fn only_powers_of_two_up_to_the_maximum_are_queue_sizes() {
        let good: Vec<u32> = (0..=70_000).filter(|&n| check_size(n).is_ok()).collect();
        assert_eq!(good, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]);
    }
}
