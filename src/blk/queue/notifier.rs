//! The call and error eventfds of a queue.

use std::fs::File;
use std::io::Error;
use std::sync::Arc;

use crate::blk::state::DeviceState;
use crate::blk::stats::QueueStats;
use crate::eventfd;

/// Writes notifications and counts what each covers. IOThread only.
#[derive(Debug)]
pub(super) struct Notifier {
    index: u16,
    device: Arc<DeviceState>,
    stats: Arc<QueueStats>,
    call: Option<Target>,
    err: Option<Target>,
    /// Completions since the last notification.
    uncovered: u64,
    /// Requests were completed since the ring was set up, or perhaps by a predecessor.
    used: bool,
}

/// An eventfd of the frontend.
#[derive(Debug)]
struct Target {
    file: Arc<File>,
    /// As it was when it came, which spares honest frontends a look before each write.
    blocking: bool,
}

impl Target {
    fn new(file: Arc<File>) -> Self {
        Self {
            blocking: eventfd::is_blocking(&file),
            file,
        }
    }

    fn signal(&self) -> std::io::Result<()> {
        eventfd::signal(&self.file, self.blocking)
    }
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
            used: false,
        }
    }

    pub(super) fn set_call(&mut self, call: Option<Arc<File>>) {
        self.call = call.map(Target::new);
    }

    pub(super) fn set_err(&mut self, err: Option<Arc<File>>) {
        self.err = err.map(Target::new);
    }

    /// True if requests were completed since the ring was set up.
    pub(super) fn was_used(&self) -> bool {
        self.used
    }

    pub(super) fn ring_stopped(&mut self) {
        (self.used, self.uncovered) = (false, 0);
    }

    /// The ring goes on where a predecessor stopped, maybe before it could notify.
    pub(super) fn ring_resumed(&mut self) {
        self.used = true;
        self.notify();
    }

    /// Completions that the next notification covers.
    pub(super) fn completed(&mut self, completions: u64) {
        self.uncovered += completions;
        self.used = true;
    }

    /// Notifies the driver. Without a call eventfd it looks at the ring by itself, or gets a call once it sets one.
    pub(super) fn notify(&mut self) {
        let Some(call) = &self.call else { return };
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

    #[cold]
    fn warn(&self, message: &'static str, error: &Error) {
        if let Some(suppressed) = self.device.log.pass(message, self.index) {
            tracing::warn!(disk = self.device.name, queue = self.index, %error, suppressed, "{message}");
        }
    }
}
