//! One queue of the frontend: keeps `iodepth` requests in flight, and counts completions and notifications.
//!
//! The counts come from outside of the backend: a notification is a count in the call eventfd, a completion is a used
//! element. A lane belongs to the thread that drives it.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use virtio_driver::{EventFd, QueueNotifier, VirtioBlkQueue};
use vm_memory::MmapRegion;

use crate::batches::Batches;
use crate::load::Work;

/// Time limit for a single request.
const PATIENCE: Duration = Duration::from_secs(5);

/// A request in flight: the index of its buffer, and its submission time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    index: u16,
    submitted: Instant,
}

/// Counts of one or more lanes during the measurement.
#[derive(Clone, Debug)]
pub(crate) struct Counts {
    pub(crate) completions: u64,
    pub(crate) errors: u64,
    pub(crate) notifications: u64,
    pub(crate) kicks: u64,
    pub(crate) wakeups: u64,
    /// Nanoseconds from submission until the driver sees the completion.
    pub(crate) latency: Histogram<u64>,
    /// Completions per notification, from the census after the measurement.
    pub(crate) batches: Batches,
}

impl Counts {
    pub(crate) fn new() -> Self {
        // 1 ns to 60 s, three significant digits.
        let latency = Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are valid");
        Self {
            completions: 0,
            errors: 0,
            notifications: 0,
            kicks: 0,
            wakeups: 0,
            latency,
            batches: Batches::default(),
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.completions += other.completions;
        self.errors += other.errors;
        self.notifications += other.notifications;
        self.kicks += other.kicks;
        self.wakeups += other.wakeups;
        self.latency
            .add(&other.latency)
            .expect("both histograms have the same bounds");
        self.batches.add(&other.batches);
    }

    /// Adds a completion that took `time`.
    pub(crate) fn completed(&mut self, time: Duration, ok: bool) {
        self.completions += 1;
        self.errors += u64::from(!ok);
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.latency.saturating_record(nanos);
    }
}

pub(crate) struct Lane<'a> {
    queue: VirtioBlkQueue<'a, Slot>,
    kick: Box<dyn QueueNotifier>,
    call: Arc<EventFd>,
    /// Shared with the backend; this lane's buffers start at `first_buffer`.
    memory: Arc<MmapRegion>,
    first_buffer: usize,
    work: Work,
    suppress: bool,
    iodepth: u16,
    /// Requests to keep in flight, at most `iodepth`.
    depth: u16,
    free: Vec<u16>,
    /// Completions seen before their notification.
    unannounced: u64,
    pub(crate) counts: Counts,
}

/// The parts of a lane, except for its queue.
pub(crate) struct Parts {
    pub(crate) kick: Box<dyn QueueNotifier>,
    pub(crate) call: Arc<EventFd>,
    pub(crate) memory: Arc<MmapRegion>,
    pub(crate) first_buffer: usize,
    pub(crate) work: Work,
    pub(crate) suppress: bool,
    pub(crate) iodepth: u16,
}

impl<'a> Lane<'a> {
    pub(crate) fn new(mut queue: VirtioBlkQueue<'a, Slot>, parts: Parts) -> Self {
        let Parts {
            kick,
            call,
            memory,
            first_buffer,
            work,
            suppress,
            iodepth,
        } = parts;
        queue.set_used_notif_enabled(true);
        let free = (0..iodepth).collect();
        Self {
            queue,
            kick,
            call,
            memory,
            first_buffer,
            work,
            suppress,
            iodepth,
            depth: iodepth,
            free,
            unannounced: 0,
            counts: Counts::new(),
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        usize::from(self.iodepth) - self.free.len()
    }

    /// Keeps fewer requests in flight from now on: `depth`, at most those that the lane was made for.
    pub(crate) fn set_depth(&mut self, depth: u16) {
        self.depth = depth.min(self.iodepth);
    }

    /// Returns the call eventfd, to wait for. Do not read it.
    pub(crate) fn call_fd(&self) -> RawFd {
        self.call.as_raw_fd()
    }

    /// Starts counting from zero.
    pub(crate) fn start_counting(&mut self) -> Result<()> {
        self.drain_calls()?;
        self.counts = Counts::new();
        Ok(())
    }

    /// Stops counting: adds the notifications since `start_counting`.
    pub(crate) fn stop_counting(&mut self) -> Result<&Counts> {
        self.counts.notifications = self.drain_calls()?;
        Ok(&self.counts)
    }

    /// Starts counting the completions of each notification from zero.
    pub(crate) fn start_census(&mut self) -> Result<()> {
        self.unannounced = 0;
        self.start_counting()
    }

    /// Takes all completions and returns their number.
    pub(crate) fn reap(&mut self) -> u64 {
        let before = self.counts.completions;
        if self.suppress {
            self.queue.set_used_notif_enabled(false);
        }
        self.take_completions();
        if self.suppress {
            self.queue.set_used_notif_enabled(true);
            // Pairs with the backend's barrier between publishing the used index and reading the flags.
            fence(Ordering::SeqCst);
            self.take_completions();
        }
        let reaped = self.counts.completions - before;
        self.counts.wakeups += u64::from(reaped > 0);
        reaped
    }

    /// Takes all completions, and records how many of them each notification covered.
    pub(crate) fn reap_with_census(&mut self) -> Result<u64> {
        let notifications = self.drain_calls()?;
        let reaped = self.reap();
        self.unannounced += reaped;
        if notifications > 0 {
            self.counts.batches.record(self.unannounced, notifications);
            self.unannounced = 0;
        }
        Ok(reaped)
    }

    fn take_completions(&mut self) {
        let Self {
            queue, free, counts, ..
        } = self;
        let mut completions = queue.completions();
        if !completions.has_next() {
            return;
        }
        let now = Instant::now();
        for completion in &mut completions {
            let slot = completion.context;
            free.push(slot.index);
            counts.completed(now.duration_since(slot.submitted), completion.ret == 0);
        }
    }

    /// Submits requests until enough are in flight, and kicks the backend once if it asks for that.
    pub(crate) fn submit(&mut self) -> Result<()> {
        // The buffers that are left for a smaller depth.
        let spare = usize::from(self.iodepth - self.depth);
        if self.free.len() <= spare {
            return Ok(());
        }
        let submitted = Instant::now();
        while self.free.len() > spare {
            let index = self.free.pop().expect("more are left");
            self.submit_one(Slot { index, submitted })?;
        }
        // The available index must be visible before we read whether the backend wants a kick. The crate has this
        // barrier only with EVENT_IDX.
        fence(Ordering::SeqCst);
        if self.queue.avail_notif_needed() {
            self.counts.kicks += 1;
            self.kick.notify().context("kick the backend")?;
        }
        Ok(())
    }

    /// Kicks the backend, whether it wants that or not.
    pub(crate) fn kick(&self) -> Result<()> {
        self.kick.notify().context("kick the backend")
    }

    /// Runs one request, and waits until it has completed.
    ///
    /// # Errors
    /// The backend does not answer within 5 seconds.
    pub(crate) fn run_one(&mut self) -> Result<()> {
        self.set_depth(1);
        self.submit()?;
        let end = Instant::now() + PATIENCE;
        while self.reap() == 0 {
            ensure!(Instant::now() < end, "the backend does not answer");
            thread::sleep(Duration::from_micros(50));
        }
        Ok(())
    }

    fn submit_one(&mut self, slot: Slot) -> Result<()> {
        let len = usize::try_from(self.work.block_size)?;
        let buffer = self
            .memory
            .as_ptr()
            .wrapping_add(self.first_buffer + usize::from(slot.index) * len);
        let offset = self.work.next_offset();
        let queued = if self.work.pattern.is_write() {
            // SAFETY: the buffer lies in the mapping that `memory` keeps; nobody else uses it until `slot` is back.
            unsafe { self.queue.write_raw(offset, buffer, len, slot) }
        } else {
            // SAFETY: the same.
            unsafe { self.queue.read_raw(offset, buffer, len, slot) }
        };
        queued.context("put a request into the ring")
    }

    /// Resets the call eventfd and returns its count.
    fn drain_calls(&self) -> Result<u64> {
        // The crate's eventfds block on reading 0. Adding 1 first makes sure that the read returns at once.
        self.call.write(1)?;
        Ok(self.call.read()? - 1)
    }
}
