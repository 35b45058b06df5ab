//! Notifies the driver of completed requests (call eventfd), and the frontend of a broken ring (error eventfd).
//!
//! Also repeats a notification that a driver seems to have missed. With EVENT_IDX a driver stores `used_event`,
//! executes a full barrier, and reads the used index once more. On QEMU's TCG with a single vCPU, the barrier of an x86
//! guest (a locked instruction) orders nothing towards other processes: the driver misses our index, we miss its
//! `used_event`, and both wait forever. So a publication without a notification is checked again a little later. For a
//! driver that follows the rules this costs a timer now and then, and at most a spurious notification.

use std::fs::File;
use std::io::Error;
use std::sync::Arc;
use std::time::Duration;

use probe::probe_lazy;

use crate::aio::Timer;
use crate::blk::state::DeviceState;
use crate::blk::stats::QueueStats;
use crate::virtqueue::SplitRing;
use crate::watchdog::Watched;

/// Writes notifications, and counts the completions that each covers. IOThread only.
#[derive(Debug)]
pub(super) struct Notifier {
    index: u16,
    device: Arc<DeviceState>,
    stats: Arc<QueueStats>,
    call: Option<Arc<Watched>>,
    err: Option<Arc<Watched>>,
    /// Completions since the last notification.
    uncovered: u64,
}

impl Notifier {
    pub(super) fn new(index: u16, device: Arc<DeviceState>, stats: Arc<QueueStats>) -> Self {
        Self {
            index,
            device,
            stats,
            call: None,
            err: None,
            uncovered: 0,
        }
    }

    pub(super) fn set_call(&mut self, call: Option<Arc<File>>) {
        self.call = call.map(|file| Watched::new(file, &self.device.fills_eventfds));
    }

    pub(super) fn set_err(&mut self, err: Option<Arc<File>>) {
        self.err = err.map(|file| Watched::new(file, &self.device.fills_eventfds));
    }

    pub(super) fn ring_stopped(&mut self) {
        self.uncovered = 0;
    }

    /// Counts completions that the next notification covers.
    pub(super) fn completed(&mut self, completions: u64) {
        self.uncovered += completions;
    }

    /// Notifies the driver. A driver without a call eventfd polls the ring, or is notified once it sets one.
    pub(super) fn notify(&mut self) {
        let Some(call) = &self.call else { return };
        probe_lazy!(
            vhost_user_blk,
            notify,
            std::ptr::from_ref(&*self.stats),
            self.device.name.as_ptr(),
            self.device.name.len(),
            self.index,
            self.uncovered
        );
        match call.signal() {
            Ok(()) => self.stats.notified(std::mem::take(&mut self.uncovered)),
            Err(error) => {
                self.warn("call eventfd cannot be written, and is dropped", &error);
                self.call = None;
            }
        }
    }

    /// Tells the frontend that the ring is broken.
    pub(super) fn report_broken(&self) {
        if let Some(err) = &self.err
            && let Err(error) = err.signal()
        {
            self.warn("error eventfd cannot be written", &error);
        }
    }

    /// Tells the next backend of a ring that work is left there.
    pub(super) fn leave_kick(&self, kick: Arc<File>) {
        if let Err(error) = Watched::new(kick, &self.device.fills_eventfds).signal() {
            self.warn(
                "kick eventfd cannot be written; the next backend may not see requests that are left",
                &error,
            );
        }
    }

    #[cold]
    pub(super) fn warn(&self, message: &'static str, error: &Error) {
        if let Some(suppressed) = self.device.log.pass(message, self.index) {
            tracing::warn!(disk = self.device.name, queue = self.index, %error, suppressed, "{message}");
        }
    }
}

/// Longer than a driver needs from one check of the ring to the next.
const INTERVAL: Duration = Duration::from_millis(5);

/// Finds out whether the driver has missed a publication. IOThread only.
#[derive(Debug)]
pub(super) struct MissedNotification {
    timer: Timer,
    /// The event and the used index that the last check found. If the next one finds the same, the driver is asleep.
    last: Option<(u16, u16)>,
    /// Something was published while the timer ran. The next check may come too early for it.
    renewed: bool,
}

impl MissedNotification {
    /// Creates a check. `timer` must call [`check`](Self::check).
    pub(super) fn new(timer: Timer) -> Self {
        Self {
            timer,
            last: None,
            renewed: false,
        }
    }

    /// Checks the ring once the driver has had time to look at it.
    pub(super) fn check_later(&mut self) {
        self.renewed = self.timer.is_armed();
        if !self.renewed {
            self.timer.arm_in(INTERVAL);
        }
    }

    /// Notifies the driver if it has missed the same event twice.
    pub(super) fn check(&mut self, ring: &mut SplitRing, notifier: &mut Notifier) {
        let missed = ring.missed_event();
        let renewed = std::mem::take(&mut self.renewed);
        if missed.is_some() && missed == self.last {
            tracing::debug!(?missed, "notifying a driver that has not seen the used index");
            ring.set_notified();
            notifier.notify();
            self.last = None;
            return;
        }
        self.last = missed;
        if missed.is_some() || renewed {
            self.check_later();
        }
    }
}
