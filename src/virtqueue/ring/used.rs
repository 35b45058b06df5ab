//! The device's side of a ring: used elements, their publication, and notification suppression.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use super::super::inflight;
use super::index::{need_event, slot};
use super::{SplitRing, UsedLog};

pub(super) const NO_NOTIFY: u16 = 1; // VIRTQ_USED_F_NO_NOTIFY
pub(super) const NO_INTERRUPT: u16 = 1; // VIRTQ_AVAIL_F_NO_INTERRUPT

impl SplitRing {
    /// Puts a completed chain into the used ring; the driver sees it after [`SplitRing::publish`].
    ///
    /// `len` is the number of bytes written into the chain, including the status byte.
    #[inline]
    pub fn push_used(&mut self, head: u16, len: u32) {
        if let Some(inflight) = &mut self.inflight {
            inflight.put_used(head);
        }
        let slot = slot(self.next_used, self.size);
        // Relaxed: made visible by the release store of the index in `publish`.
        self.used_u32(4 + 8 * slot)
            .store(u32::from(head).to_le(), Ordering::Relaxed);
        self.used_u32(8 + 8 * slot).store(len.to_le(), Ordering::Relaxed);
        self.next_used += 1;
    }

    /// The number of completed chains that the driver cannot see yet.
    pub fn unpublished(&self) -> u16 {
        (self.next_used - self.published).0
    }

    /// Makes all pushed chains visible to the driver, and returns whether it wants a notification (2.7.7, 2.7.8).
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
        // SeqCst: our store of the index before our read of the driver's used_event or flags. Pairs with the driver's
        // full barrier between its store of those and its last read of the index.
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

    /// Detects a driver that waits for an index that was published without notifying it. Returns that index and the
    /// published index.
    ///
    /// A driver that is processing the ring right now looks the same, but only briefly. A waiting driver has taken all
    /// used elements before its event, so the published index is at most a ring's size ahead of the event. A polling
    /// driver may leave its event anywhere.
    pub fn missed_event(&self) -> Option<(u16, u16)> {
        let event = self.used_event();
        let missed = self.features.event_idx
            && need_event(event, self.published, self.notified)
            && (self.published - event).0 <= self.size;
        missed.then_some((event.0, self.published.0))
    }

    /// Records that the driver was notified of everything published so far.
    pub fn set_notified(&mut self) {
        self.notified = self.published;
    }

    /// Makes the next [`SplitRing::publish`] notify, whatever the driver asked for (after a new call fd or a reconnect).
    pub fn force_notification(&mut self) {
        self.signalled = None;
    }

    /// Asks the driver for kicks from now on.
    ///
    /// The caller must check the ring once more afterwards: the driver may have added entries without a kick before.
    pub fn enable_kicks(&mut self) {
        self.ask_for_kicks(self.next_avail);
    }

    /// Asks the driver, when the ring stops, to kick for every entry that it adds from now on, even if entries before it
    /// are left for the next backend.
    pub fn leave_kicks_enabled(&mut self) {
        // If the index is invalid, the next backend refuses it.
        let _ = self.refresh();
        self.ask_for_kicks(self.avail_idx);
    }

    fn ask_for_kicks(&mut self, event: Wrapping<u16>) {
        if self.features.event_idx {
            let avail_event = self.used_u16(4 + 8 * usize::from(self.size));
            avail_event.store(event.0.to_le(), Ordering::Relaxed);
        } else {
            self.used_u16(0).store(0, Ordering::Relaxed);
        }
        self.log_used();
        // SeqCst: our request for kicks before our last read of the index. Pairs with the driver's full barrier between
        // its store of the index and its read of avail_event or flags.
        fence(Ordering::SeqCst);
    }

    /// Tells the driver that no kicks are needed because the ring is polled.
    ///
    /// With EVENT_IDX this does nothing: an avail_event that the driver has passed requests no kicks.
    pub fn disable_kicks(&mut self) {
        if !self.features.event_idx {
            self.used_u16(0).store(NO_NOTIFY.to_le(), Ordering::Relaxed);
            self.log_used();
        }
    }

    /// Marks the whole used ring dirty: it spans at most three pages.
    #[inline]
    pub(super) fn log_used(&self) {
        if let Some(UsedLog { log, addr }) = &self.log {
            log.mark(*addr, self.used.len() as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::memory::{DirtyLog, RingLog};
    use crate::virtqueue::inflight::model::Driver;

    /// Answers `answers` requests on a queue of 8, setting `used_event` after each, and returns how often the driver was
    /// found waiting.
    fn found_waiting(answers: u16, used_event: impl Fn(u16) -> u16) -> usize {
        let mut driver = Driver::new(8, 0, true);
        let mut ring = driver.device().ring;
        (1..=answers)
            .filter(|&published| {
                driver.submit(0);
                let head = ring.pop().unwrap().unwrap();
                ring.push_used(head, 1);
                ring.publish();
                driver.reap();
                driver.set_used_event(used_event(published));
                ring.missed_event().is_some()
            })
            .count()
    }

    #[test]
    fn missed_event_ignores_polling_drivers() {
        // A polling driver leaves its event far away.
        assert_eq!(found_waiting(300, |published| published.wrapping_sub(200)), 0);
        assert_eq!(found_waiting(300, |published| published.wrapping_sub(9)), 0);
        assert_eq!(found_waiting(300, |published| published.wrapping_add(100)), 0);
        // The driver has seen none of a full queue's answers, then all but the last one. The very first publication
        // always notifies.
        assert_eq!(found_waiting(300, |published| published.wrapping_sub(8)), 292);
        assert_eq!(found_waiting(300, |published| published.wrapping_sub(1)), 299);
        assert_eq!(found_waiting(300, |published| published), 0);
    }

    #[test]
    fn used_ring_writes_are_logged_while_logging() {
        use std::os::unix::fs::FileExt;

        let file = crate::memory::memfd(c"log", 4096).unwrap();
        let log = Arc::new(DirtyLog::map(&file, 0, 8).unwrap());
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
}
