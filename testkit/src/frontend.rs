//! A well-behaved frontend on the `virtio-driver` crate, which shares no code with the daemon.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VirtioBlkConfig, VirtioBlkFeatureFlags as Blk, VirtioBlkQueue,
    VirtioBlkReqBuf, VirtioFeatureFlags as Ring, VirtioTransport,
};

use crate::memory::{PATIENCE, SharedMemory, wait_readable};

/// The buffer size of a request in flight, and so the largest request.
pub const SLOT: usize = 64 << 10;

/// The features that a test's frontend accepts by default.
pub fn all_features() -> u64 {
    Ring::VERSION_1.bits() | Ring::RING_EVENT_IDX.bits() | Blk::all().bits()
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Read { offset: u64, len: usize },
    Write { offset: u64, data: Vec<u8> },
    Flush,
    Discard { offset: u64, len: u64 },
    WriteZeroes { offset: u64, len: u64, unmap: bool },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// The tag that `submit` was called with.
    pub tag: usize,
    /// 0 or a negative errno.
    pub ret: i32,
    /// The data that a read returned.
    pub data: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Ticket {
    tag: usize,
    slot: usize,
    read: usize,
}

/// A connection with all its queues running.
pub struct Frontend {
    // Dropped first: the rings lie in the transport's memory.
    queues: Vec<Queue>,
    pub transport: Box<VhostUser<VirtioBlkConfig, VirtioBlkReqBuf>>,
}

/// One queue of a `Frontend`. It may move to another thread while the frontend lives.
pub struct Queue {
    ring: VirtioBlkQueue<'static, Ticket>,
    notifier: Box<dyn QueueNotifier>,
    call: Arc<EventFd>,
    memory: SharedMemory,
    free: Vec<usize>,
    depth: usize,
}

impl Frontend {
    /// Connects with `queues` queues that take `depth` requests each, and accepts `features`.
    pub fn connect(socket: &Path, queues: usize, depth: usize, features: u64) -> io::Result<Self> {
        let path = socket.to_str().expect("the path is UTF-8");
        let mut transport = Box::new(connect(path, features)?);
        // A request takes three descriptors.
        let size = u16::try_from((depth * 3).next_power_of_two()).expect("a queue has 1024 entries at most");
        let rings = VirtioBlkQueue::setup_queues(transport.as_mut(), queues, size)?;
        let memory: Vec<_> = rings.iter().map(|_| SharedMemory::new(depth * SLOT)).collect();
        for memory in &memory {
            transport.map_mem_region(memory.as_ptr() as usize, memory.len(), memory.fd(), 0)?;
        }
        let queues = rings
            .into_iter()
            .zip(memory)
            .enumerate()
            .map(|(i, (mut ring, memory))| {
                ring.set_used_notif_enabled(true);
                let (notifier, call) = (
                    transport.get_submission_notifier(i),
                    transport.get_completion_fd(i),
                );
                Queue {
                    ring,
                    notifier,
                    call,
                    memory,
                    free: (0..depth).collect(),
                    depth,
                }
            });
        let queues = queues.collect();
        Ok(Self { queues, transport })
    }

    pub fn features(&self) -> u64 {
        self.transport.get_features()
    }

    pub fn config(&self) -> VirtioBlkConfig {
        self.transport
            .get_config()
            .expect("the configuration can be read")
    }

    pub fn queue(&mut self, index: usize) -> &mut Queue {
        &mut self.queues[index]
    }

    pub fn queues(&mut self) -> &mut [Queue] {
        &mut self.queues
    }
}

/// Connects. Retries while the socket is bound but not listening yet.
fn connect(path: &str, features: u64) -> io::Result<VhostUser<VirtioBlkConfig, VirtioBlkReqBuf>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match VhostUser::new(path, features) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && Instant::now() < deadline => {
                std::thread::yield_now();
            }
            result => return result,
        }
    }
}

impl Queue {
    /// Puts a request into the ring without a kick.
    pub fn submit(&mut self, op: &Op, tag: usize) {
        let slot = self.free.pop().expect("a free slot");
        let at = slot * SLOT;
        let buffer = self.memory.as_ptr().wrapping_add(at);
        let read = if let Op::Read { len, .. } = op { *len } else { 0 };
        assert!(read <= SLOT);
        let ticket = Ticket { tag, slot, read };
        let queued = match op {
            // SAFETY: no other request uses the buffer until the ticket is back, and `memory` keeps it mapped.
            Op::Read { offset, len } => unsafe { self.ring.read_raw(*offset, buffer, *len, ticket) },
            Op::Write { offset, data } => {
                assert!(data.len() <= SLOT);
                self.memory.write(at, data);
                // SAFETY: the same.
                unsafe { self.ring.write_raw(*offset, buffer, data.len(), ticket) }
            }
            Op::Flush => self.ring.flush(ticket),
            Op::Discard { offset, len } => self.ring.discard(*offset, *len, ticket),
            Op::WriteZeroes { offset, len, unmap } => self.ring.write_zeroes(*offset, *len, *unmap, ticket),
        };
        queued.expect("the ring has room");
    }

    /// Kicks the backend if it asks for kicks.
    pub fn kick(&mut self) {
        // The crate orders the index store before the check for notifications with EVENT_IDX only.
        fence(Ordering::SeqCst);
        if self.ring.avail_notif_needed() {
            self.notifier.notify().expect("kick");
        }
    }

    /// Takes the available completions without waiting.
    pub fn reap(&mut self) -> Vec<Done> {
        let Self {
            ring, memory, free, ..
        } = self;
        let take = |completion: virtio_driver::Completion<Ticket>| {
            let Ticket { tag, slot, read } = completion.context;
            free.push(slot);
            Done {
                tag,
                ret: completion.ret,
                data: memory.read(slot * SLOT, read),
            }
        };
        ring.completions().map(take).collect()
    }

    pub fn in_flight(&self) -> usize {
        self.depth - self.free.len()
    }

    /// Sleeps on the call eventfd until a request completes. Returns the completions and the number of notifications.
    ///
    /// # Panics
    /// Nothing completes for a long time.
    pub fn wait(&mut self) -> (Vec<Done>, u64) {
        let completed = self.wait_at_most(PATIENCE);
        completed.unwrap_or_else(|| panic!("{} requests do not complete", self.in_flight()))
    }

    /// Like [`wait`](Self::wait), but returns `None` if nothing completes within `time`.
    pub fn wait_at_most(&mut self, time: Duration) -> Option<(Vec<Done>, u64)> {
        let deadline = Instant::now() + time;
        let mut notifications = 0;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if !wait_readable(&*self.call, left) {
                return None;
            }
            notifications += self.call.read().expect("read the call eventfd");
            let done = self.reap();
            if !done.is_empty() {
                return Some((done, notifications));
            }
        }
    }

    pub fn drain(&mut self) -> Vec<Done> {
        let mut all = self.reap();
        while self.in_flight() > 0 {
            all.extend(self.wait().0);
        }
        all
    }

    /// Runs one request and waits for its completion.
    pub fn run(&mut self, op: &Op) -> Done {
        self.submit(op, 0);
        self.kick();
        self.drain().pop().expect("it completed")
    }

    /// Runs one request and waits for its completion. Another one, a read of the first sector, is submitted at the same time.
    pub fn run_beside(&mut self, op: &Op) -> Done {
        self.submit(&Op::Read { offset: 0, len: 512 }, 0);
        self.submit(op, 1);
        self.kick();
        let mut done = self.drain();
        let at = done.iter().position(|done| done.tag == 1).expect("it completed");
        done.swap_remove(at)
    }

    /// Takes the notifications that have not been counted yet.
    pub fn pending_notifications(&self) -> u64 {
        // We add one first, so that the read does not block.
        self.call.write(1).expect("write the call eventfd");
        self.call.read().expect("read the call eventfd") - 1
    }

    pub fn call_fd(&self) -> i32 {
        self.call.as_raw_fd()
    }
}
