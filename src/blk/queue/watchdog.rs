//! A second look at the driver's wish, for drivers whose barriers do not hold.
//!
//! With EVENT_IDX a driver stores `used_event`, executes a full barrier, and looks at the used index once more. On
//! QEMU's TCG with a single vCPU the barrier of an x86 guest (a locked instruction) orders nothing towards other
//! processes: the driver misses our index, we miss its `used_event`, and both wait for ever. So what was published
//! without a notification is looked at again a little later. A driver that keeps the rules costs one timer now and
//! then, and at most a spurious notification.

use std::rc::Weak;
use std::time::Duration;

use super::{BlkQueue, State};
use crate::aio::{AioContext, Timer};

/// Longer than a driver takes from its look at the ring to the next.
const INTERVAL: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(super) struct Watchdog {
    timer: Timer,
    /// What the last look has found; the same again means that nobody is looking at the ring.
    missed: Option<(u16, u16)>,
}

impl Watchdog {
    pub(super) fn new(ctx: &AioContext, queue: Weak<BlkQueue>) -> Self {
        let timer = ctx.timer(move |_| {
            if let Some(queue) = queue.upgrade() {
                queue.state.borrow_mut().look_again();
            }
        });
        Self { timer, missed: None }
    }

    /// Has the ring looked at some time from now.
    pub(super) fn arm(&self) {
        if !self.timer.is_armed() {
            self.timer.arm_in(INTERVAL);
        }
    }
}

impl State {
    fn look_again(&mut self) {
        let Some(running) = &mut self.running else { return };
        let missed = running.ring.missed_event();
        if missed.is_some() && missed == self.watchdog.missed {
            tracing::debug!(?missed, "notifying a driver that has not seen the used index");
            running.ring.set_notified();
            self.notifier.notify();
            self.watchdog.missed = None;
            return;
        }
        self.watchdog.missed = missed;
        if missed.is_some() {
            self.watchdog.arm();
        }
    }
}
