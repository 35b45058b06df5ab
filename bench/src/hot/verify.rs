//! A load that checks its data: writes blocks, reads them back, and compares.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use virtio_driver::{
    EventFd, QueueNotifier, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioFeatureFlags, VirtioTransport,
};
use vm_memory::MmapRegion;

use crate::frontend::{Transport, open, shared_memory};

const BLOCK: usize = 4096;
/// Time limit for a request.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to a disk with one queue. Each slot keeps one request in flight, on blocks of its own.
pub(super) struct Verifier {
    // Dropped first: the ring is in the transport's memory.
    queue: VirtioBlkQueue<'static, usize>,
    kick: Box<dyn QueueNotifier>,
    call: Arc<EventFd>,
    memory: Arc<MmapRegion>,
    slots: Vec<Slot>,
    blocks: u64,
    _transport: Box<Transport>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    /// The block, and the number in each of its words.
    block: u64,
    stamp: u64,
    is_read: bool,
    submitted: Instant,
}

impl Verifier {
    /// Connects with `depth` slots.
    ///
    /// # Errors
    /// The disk does not answer, or is too small.
    pub(super) fn connect(socket: &Path, depth: usize) -> Result<Self> {
        let features = VirtioFeatureFlags::VERSION_1.bits()
            | VirtioFeatureFlags::RING_EVENT_IDX.bits()
            | VirtioBlkFeatureFlags::FLUSH.bits();
        let path = socket.to_str().context("the socket's path is not UTF-8")?;
        let mut transport = Box::new(open(path, features)?);
        let mut rings = VirtioBlkQueue::setup_queues(transport.as_mut(), 1, 256).context("set up a queue")?;
        let memory = shared_memory(&mut transport, depth * BLOCK)?;
        let config = transport.get_config().context("read the configuration")?;
        let blocks = config.capacity.to_native() * 512 / BLOCK as u64;
        ensure!(blocks >= depth as u64, "the disk is too small");
        let mut queue = rings.pop().context("there is a queue")?;
        queue.set_used_notif_enabled(true);
        let slot = |block| Slot {
            block,
            stamp: 0,
            is_read: true,
            submitted: Instant::now(),
        };
        Ok(Self {
            queue,
            kick: transport.get_submission_notifier(0),
            call: transport.get_completion_fd(0),
            memory,
            slots: (0..depth as u64).map(slot).collect(),
            blocks,
            _transport: transport,
        })
    }

    /// Returns with all requests in flight, so that the disk can be removed under load.
    ///
    /// # Errors
    /// The ring has no room.
    pub(super) fn submit_all(&mut self) -> Result<()> {
        (0..self.slots.len()).try_for_each(|slot| self.submit(slot))?;
        self.kick()
    }

    /// Writes and verifies until `goes_on` returns false. `took` is called with the time of each request.
    ///
    /// # Errors
    /// A request fails or gets no answer, or the data is wrong.
    pub(super) fn run(&mut self, goes_on: impl Fn() -> bool, mut took: impl FnMut(Duration)) -> Result<()> {
        self.submit_all()?;
        let (mut in_flight, mut last) = (self.slots.len(), Instant::now());
        while in_flight > 0 {
            let done = self.reap()?;
            if done.is_empty() {
                ensure!(last.elapsed() < PATIENCE, "the disk does not answer");
                self.wait()?;
                continue;
            }
            last = Instant::now();
            for slot in done {
                took(last - self.slots[slot].submitted);
                self.check(slot)?;
                if goes_on() {
                    self.submit(slot)?;
                } else {
                    in_flight -= 1;
                }
            }
            self.kick()?;
        }
        Ok(())
    }

    /// Submits the slot's next request: the read of what it wrote last, or the write of another block.
    fn submit(&mut self, index: usize) -> Result<()> {
        let count = self.slots.len() as u64;
        let slot = &mut self.slots[index];
        slot.is_read = !slot.is_read;
        if !slot.is_read {
            slot.stamp = slot.stamp.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let step = count * (1 + slot.stamp % 7);
            slot.block = if slot.block + step < self.blocks {
                slot.block + step
            } else {
                slot.block % count
            };
        }
        slot.submitted = Instant::now();
        let (slot, buffer) = (*slot, self.buffer(index));
        self.fill(index, if slot.is_read { 0 } else { slot.stamp });
        let offset = slot.block * BLOCK as u64;
        let queued = if slot.is_read {
            // SAFETY: the buffer is in the mapping that `memory` keeps; nobody else uses it until the request is back.
            unsafe { self.queue.read_raw(offset, buffer, BLOCK, index) }
        } else {
            // SAFETY: the same.
            unsafe { self.queue.write_raw(offset, buffer, BLOCK, index) }
        };
        queued.context("put a request into the ring")
    }

    fn kick(&mut self) -> Result<()> {
        // The crate has this barrier only with EVENT_IDX.
        fence(Ordering::SeqCst);
        if self.queue.avail_notif_needed() {
            self.kick.notify().context("kick the backend")?;
        }
        Ok(())
    }

    fn reap(&mut self) -> Result<Vec<usize>> {
        let mut done = Vec::new();
        for completion in self.queue.completions() {
            ensure!(completion.ret == 0, "a request failed: {}", completion.ret);
            done.push(completion.context);
        }
        Ok(done)
    }

    /// Compares the data of a read.
    fn check(&self, index: usize) -> Result<()> {
        let slot = &self.slots[index];
        if !slot.is_read {
            return Ok(());
        }
        for word in 0..BLOCK / 8 {
            // SAFETY: within the slot's buffer, which the backend no longer writes.
            let found = unsafe { self.word(index, word).read_volatile() };
            if found != slot.stamp ^ word as u64 {
                bail!("wrong data in block {}: word {word} is {found:#x}", slot.block);
            }
        }
        Ok(())
    }

    fn fill(&self, index: usize, stamp: u64) {
        for word in 0..BLOCK / 8 {
            // SAFETY: within the slot's buffer, which no request uses now.
            unsafe { self.word(index, word).write_volatile(stamp ^ word as u64) };
        }
    }

    fn buffer(&self, index: usize) -> *mut u8 {
        self.memory.as_ptr().wrapping_add(index * BLOCK)
    }

    fn word(&self, index: usize, word: usize) -> *mut u64 {
        self.buffer(index).cast::<u64>().wrapping_add(word)
    }

    /// Sleeps until the backend notifies, for a second at most.
    fn wait(&self) -> Result<()> {
        let mut polled = libc::pollfd {
            fd: self.call.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one structure of our own.
        let ready = unsafe { libc::poll(&raw mut polled, 1, 1000) };
        if ready > 0 {
            self.call.read().context("read the call eventfd")?;
        }
        Ok(())
    }
}
