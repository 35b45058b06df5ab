//! The device's side of a ring: used elements, their publication, and who wants to be told of what.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use super::super::inflight;
use super::index::{need_event, slot};
use super::{SplitRing, UsedLog};

const NO_NOTIFY: u16 = 1; // VIRTQ_USED_F_NO_NOTIFY
const NO_INTERRUPT: u16 = 1; // VIRTQ_AVAIL_F_NO_INTERRUPT

impl SplitRing {
    /// Puts a completed chain into the used ring; the driver sees it after [`SplitRing::publish`].
    ///
    /// `len` counts the bytes written into the chain, the status byte included.
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
    /// A driver that is just looking at the ring gives the same picture, but not for long. One that waits has taken all
    /// used elements before its event, so the event is at most a ring's size behind; a driver that polls parks it
    /// anywhere.
    pub fn missed_event(&self) -> Option<(u16, u16)> {
        let event = self.used_event();
        let missed = self.features.event_idx
            && need_event(event, self.published, self.notified)
            && (self.published - event).0 <= self.size;
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
        self.ask_for_kicks(self.next_avail);
    }

    /// The ring stops: asks the driver to kick for whatever it adds from here on, also behind entries that are left for
    /// whoever serves the ring next.
    pub fn leave_kicks_enabled(&mut self) {
        // An impossible index is for whoever serves the ring next to refuse.
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

    /// A driver's `used_event` after each of `answers` requests on a queue of 8, and how often it was found waiting.
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
    fn only_an_event_that_a_waiting_driver_can_have_is_missed() {
        // Parked far away, by a driver that polls.
        assert_eq!(found_waiting(300, |published| published.wrapping_sub(200)), 0);
        assert_eq!(found_waiting(300, |published| published.wrapping_sub(9)), 0);
        assert_eq!(found_waiting(300, |published| published.wrapping_add(100)), 0);
        // The whole queue is answered, and the driver has seen nothing of it, or all but the last one. The first
        // publication of all notifies.
        assert_eq!(found_waiting(300, |published| published.wrapping_sub(8)), 292);
        assert_eq!(found_waiting(300, |published| published.wrapping_sub(1)), 299);
        assert_eq!(found_waiting(300, |published| published), 0);
    }

    #[test]
    fn each_write_to_the_used_ring_is_logged_while_that_is_on() {
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
