//! A queue of a disk in this process, driven by hand, on a disk in memory.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vhost_user_blk::aio::{AioContext, Remote};
use vhost_user_blk::blk::device::DeviceState;
use vhost_user_blk::blk::queue::{BlkQueue, RingSetup, Stop};
use vhost_user_blk::blk::stats::QueueStats;
use vhost_user_blk::engine::{BlockNode, Choice, Resources};
use vhost_user_blk::memory::RingLog;
use vhost_user_blk::storage::OpenOptions;
use vhost_user_blk::thread_pool::{ThreadPool, ThreadPoolParams};
use vhost_user_blk::virtqueue::{RingAddresses, RingFeatures};

use crate::chains::{AVAIL, DESC, USED};
use crate::guest::{Guest, RINGS, eventfd, memfd};

/// Size of the disk and of its file. The rest of the file must never be written.
pub const DISK: usize = 64 << 10;
pub const FILE: usize = DISK + 512;
pub const SERIAL: [u8; 20] = *b"fuzzed-serial-number";
/// Time limit for anything that does not hang.
const PATIENCE: Duration = Duration::from_secs(10);

/// The kind of disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub block_size: u32,
    pub read_only: bool,
    pub engine: Choice,
}

/// A queue that is set up again for each input. Its threads stay.
pub struct Queue {
    pub shape: Shape,
    pub disk: File,
    pub device: Arc<DeviceState>,
    ctx: AioContext,
    remote: Remote<BlkQueue>,
    pool: ThreadPool,
    kick: File,
}

impl Queue {
    /// Makes a queue. Returns `None` if this machine does not support the engine.
    pub fn new(shape: Shape) -> Option<Self> {
        let disk = memfd(DISK as u64);
        let options = OpenOptions {
            path: format!("/proc/self/fd/{}", disk.as_raw_fd()).into(),
            read_only: shape.read_only,
            logical_block_size: Some(shape.block_size),
            ..OpenOptions::default()
        };
        let node = Arc::new(BlockNode::open(&options).expect("open a memfd"));
        disk.set_len(FILE as u64).expect("size the disk");
        let plan = node.plan(shape.engine).ok()?;
        let device = Arc::new(DeviceState {
            serial: SERIAL,
            ..DeviceState::new("fuzz", node)
        });
        let ctx = AioContext::new().expect("a context");
        ctx.set_poll_max(Duration::ZERO);
        let limits = ThreadPoolParams {
            min_threads: 1,
            max_threads: 1,
        };
        let pool = ThreadPool::new(&ctx, limits);
        let channel = device
            .below
            .view()
            .node
            .open_channel(&Resources::new(&ctx, pool.clone()), plan)
            .ok()?;
        let stats: Arc<QueueStats> = Arc::default();
        let remote = BlkQueue::create(&ctx, 0, Arc::clone(&device), stats, channel);
        Some(Self {
            shape,
            disk,
            device,
            ctx,
            remote,
            pool,
            kick: eventfd(),
        })
    }

    /// Returns the size of the disk as the driver sees it.
    pub fn capacity(&self) -> u64 {
        self.device.capacity()
    }

    /// Starts the ring on a guest's memory.
    pub fn start(&self, guest: &Guest, size: u16, base: u16, features: RingFeatures, log: Option<RingLog>) {
        let setup = RingSetup {
            memory: Arc::new(guest.table()),
            addresses: RingAddresses {
                desc: RINGS.user + DESC,
                avail: RINGS.user + AVAIL,
                used: RINGS.user + USED,
            },
            size: size.into(),
            base,
            features,
            inflight: None,
            log,
        };
        let kick = self.kick.try_clone().expect("another descriptor");
        self.run(move |queue| {
            queue.start(setup).expect("a ring like any other");
            queue.set_enabled(true);
            queue.set_kick(Some(kick.into())).expect("an eventfd");
        });
    }

    fn run(&self, f: impl FnOnce(&BlkQueue) + Send + 'static) {
        self.remote.post(move |queue| f(queue)).expect("it lives");
        self.ctx.poll(false);
    }

    pub fn set_write_through(&self, on: bool) {
        self.run(move |queue| queue.set_write_through(on));
    }

    pub fn kick(&self) {
        (&self.kick).write_all(&1u64.to_ne_bytes()).expect("kick");
    }

    /// Runs the event loop until `done` returns true.
    pub fn poll_until(&self, mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < PATIENCE, "nothing happens any more");
            if !self.ctx.poll(false) {
                std::thread::yield_now();
            }
        }
    }

    /// Runs a few passes of the event loop, to catch late writes.
    pub fn poll_some(&self) {
        for _ in 0..6 {
            self.ctx.poll(false);
        }
    }

    /// Stops the ring and returns its next available index.
    pub fn stop(&self) -> u16 {
        let (done, stopped) = std::sync::mpsc::channel();
        self.run(move |queue| queue.stop(Stop::HandOver, done));
        let mut base = None;
        self.poll_until(|| {
            base = base.or_else(|| stopped.try_recv().ok());
            base.is_some() && self.pool.in_flight() == 0
        });
        base.expect("it has stopped")
    }

    /// Sets all bytes of the disk's file.
    pub fn load(&self, bytes: &[u8]) {
        self.disk.write_all_at(bytes, 0).expect("write the disk");
    }

    /// Returns all bytes of the disk's file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; FILE];
        self.disk.read_exact_at(&mut bytes, 0).expect("read the disk");
        bytes
    }
}
