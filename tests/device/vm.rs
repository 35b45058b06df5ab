//! A virtqueue of a disk in this process, driven by hand: no socket, and no threads except the pool's.

use std::fs::File;
use std::io::{Read, Write};
use std::rc::Rc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use testkit::memory::{SharedMemory, eventfd, memfd};
use testkit::ring::{self, DriverRing, NO_INTERRUPT, NO_NOTIFY};
use vhost_user_blk::aio::{AioContext, Remote};
use vhost_user_blk::blk::device::DeviceState;
use vhost_user_blk::blk::queue::{BlkQueue, RingSetup, Stop};
use vhost_user_blk::blk::stats::QueueStats;
use vhost_user_blk::engine::{BlockNode, Channel, Choice, Resources};
use vhost_user_blk::memory::{GuestMemory, RegionInfo};
use vhost_user_blk::storage::OpenOptions;
use vhost_user_blk::thread_pool::{Outcome, ThreadPool, ThreadPoolParams, Work};
use vhost_user_blk::virtqueue::{RingAddresses, RingFeatures};

pub(crate) const MEMORY: u64 = 1 << 21;
/// Frontend addresses differ from guest addresses.
const USER: u64 = 0x7f00_0000_0000;
const DESC: u64 = 0;
const AVAIL: u64 = 0x4000;
const USED: u64 = 0x5000;
/// Buffers and indirect tables.
pub(crate) const HEAP: u64 = 0x1_0000;
/// Time limit for a test that hangs. Tests that pass never wait this long.
const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) use testkit::blk::header;

/// One buffer of a chain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Desc {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) writable: bool,
}

impl Desc {
    /// The descriptor, without a link to the next one.
    fn plain(self) -> ring::Desc {
        let Self { addr, len, writable } = self;
        if writable {
            ring::writable(addr, len)
        } else {
            ring::readable(addr, len)
        }
    }
}

/// A disk with its queues on this thread and one worker.
pub(crate) struct Disk {
    channel: Channel,
    device: Arc<DeviceState>,
    resources: Rc<Resources>,
    // Dropped last: the other fields are registered with it.
    ctx: AioContext,
    _image: Option<tempfile::NamedTempFile>,
}

impl Disk {
    /// Makes the IOThread's resources for this thread.
    pub(crate) fn resources() -> Rc<Resources> {
        let ctx = AioContext::new().unwrap();
        ctx.set_poll_max(Duration::ZERO);
        let one = ThreadPoolParams {
            min_threads: 1,
            max_threads: 1,
        };
        Resources::new(&ctx, ThreadPool::new(&ctx, one))
    }

    pub(crate) fn new(image: &[u8], choice: Choice) -> Rc<Self> {
        // Only a file in memory is certain to be read by the IOThread itself.
        let dir = match choice {
            Choice::Auto => "/dev/shm",
            _ => env!("CARGO_TARGET_TMPDIR"),
        };
        let mut file = tempfile::NamedTempFile::new_in(dir).unwrap();
        file.write_all(image).unwrap();
        let options = OpenOptions {
            // Long visits need reads that take their time.
            map: false,
            path: file.path().to_owned(),
            ..OpenOptions::default()
        };
        Self::with(
            &Self::resources(),
            BlockNode::open(&options).unwrap(),
            choice,
            Some(file),
        )
    }

    /// Makes a disk that completes requests at once. It stores nothing.
    pub(crate) fn null(resources: &Rc<Resources>) -> Rc<Self> {
        Self::with(resources, BlockNode::null(MEMORY), Choice::Auto, None)
    }

    fn with(
        resources: &Rc<Resources>,
        node: BlockNode,
        choice: Choice,
        image: Option<tempfile::NamedTempFile>,
    ) -> Rc<Self> {
        let device = Arc::new(DeviceState {
            serial: *b"in-process\0\0\0\0\0\0\0\0\0\0",
            ..DeviceState::new("test", Arc::new(node))
        });
        let plan = device.below.view().node.plan(choice).unwrap();
        Rc::new(Self {
            channel: device.below.view().node.open_channel(resources, plan).unwrap(),
            device,
            ctx: resources.ctx().clone(),
            resources: Rc::clone(resources),
            _image: image,
        })
    }
}

/// A queue of a disk and the driver's side of it.
pub(crate) struct Vm {
    pub(crate) ctx: AioContext,
    memory: SharedMemory,
    pub(crate) stats: Arc<QueueStats>,
    /// `None` only during drop.
    remote: Option<Remote<BlkQueue>>,
    pool: ThreadPool,
    kick: File,
    call: File,
    ring: DriverRing,
    features: RingFeatures,
    _disk: Rc<Disk>,
}

impl Vm {
    /// Makes a queue of `size` entries that continues at `base`, on a disk with content `image`. The worker does all
    /// I/O.
    pub(crate) fn new(image: &[u8], size: u16, base: u16, features: RingFeatures) -> Self {
        Self::on(&Disk::new(image, Choice::Threads), size, base, features)
    }

    /// Adds a queue to a disk.
    pub(crate) fn on(disk: &Rc<Disk>, size: u16, base: u16, features: RingFeatures) -> Self {
        let (ctx, stats): (_, Arc<QueueStats>) = (&disk.ctx, Arc::default());
        let (device, channel) = (Arc::clone(&disk.device), disk.channel.sibling());
        let remote = BlkQueue::create(ctx, 0, device, Arc::clone(&stats), channel);
        let mut vm = Self {
            memory: SharedMemory::map(memfd(MEMORY), at(MEMORY)),
            remote: Some(remote),
            pool: disk.resources.pool().clone(),
            stats,
            ctx: ctx.clone(),
            kick: eventfd(),
            call: eventfd(),
            ring: DriverRing::new(size, at(DESC), at(AVAIL), at(USED)),
            features,
            _disk: Rc::clone(disk),
        };
        // A ring that continues at `base` has used everything before it.
        vm.ring.continue_at(&vm.memory, base);
        vm.start(base);
        vm
    }

    fn guest_memory(&self) -> Arc<GuestMemory> {
        let info = RegionInfo {
            guest: 0,
            len: MEMORY,
            user: USER,
            file_offset: 0,
        };
        Arc::new(GuestMemory::map([(info, self.memory.file().try_clone().unwrap())]).unwrap())
    }

    /// Sets the ring up, as SET_VRING_* and SET_VRING_ENABLE do.
    pub(crate) fn start(&self, base: u16) {
        let addresses = RingAddresses {
            desc: USER + DESC,
            avail: USER + AVAIL,
            used: USER + USED,
        };
        let setup = RingSetup {
            memory: self.guest_memory(),
            addresses,
            size: self.ring.size.into(),
            base,
            features: self.features,
            inflight: None,
            log: None,
        };
        let (kick, call) = (self.kick.try_clone().unwrap(), self.call.try_clone().unwrap());
        self.run(move |queue| {
            queue.set_call(Some(call.into()));
            queue.start(setup).unwrap();
            queue.set_enabled(true);
            queue.set_kick(Some(kick.into())).unwrap();
        });
        assert!(self.calls() > 0, "a ring that starts signals once");
    }

    /// Runs `f` on the queue, in this thread's next pass.
    pub(crate) fn run(&self, f: impl FnOnce(&BlkQueue) + Send + 'static) {
        let remote = self.remote.as_ref().unwrap();
        remote.post(move |queue| f(queue)).unwrap();
        self.ctx.poll(false);
    }

    /// Replaces the memory table with one that maps the same file again.
    pub(crate) fn remap(&self) {
        let memory = self.guest_memory();
        self.run(move |queue| queue.set_memory(&memory));
    }

    /// Asks the ring to stop. The receiver gets the base once all requests are answered.
    pub(crate) fn stop(&self) -> Receiver<u16> {
        let (done, stopped) = mpsc::channel();
        self.run(move |queue| queue.stop(Stop::HandOver, done));
        stopped
    }

    /// Occupies the pool's only worker until the gate is opened.
    pub(crate) fn hold(&self) -> Gate {
        let (open, gate) = mpsc::channel();
        let (entered, inside) = mpsc::channel();
        self.pool.submit(Box::new(GateWork {
            gate: Mutex::new(gate),
            entered,
        }));
        // A bottom half requests the worker.
        self.poll_until(|_| inside.try_recv().is_ok());
        Gate { _open: open }
    }

    /// Returns the number of jobs in the pool.
    pub(crate) fn works(&self) -> usize {
        self.pool.in_flight()
    }

    pub(crate) fn poll_until(&self, mut done: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < DEADLINE, "nothing happens");
            if !self.ctx.poll(false) {
                std::thread::yield_now();
            }
        }
    }

    /// Runs passes for at least this long.
    pub(crate) fn poll_for(&self, time: Duration) {
        let start = Instant::now();
        self.poll_until(|_| start.elapsed() >= time);
    }

    /// Waits until the worker has finished. Nothing is reaped meanwhile.
    pub(crate) fn wait_for_worker(&self) {
        let start = Instant::now();
        while (self.pool.counters().queued, self.pool.counters().active) != (0, 0) {
            assert!(start.elapsed() < DEADLINE, "the worker does not end");
            std::thread::yield_now();
        }
    }

    /// Runs a few passes in which nothing is expected to happen.
    pub(crate) fn poll_some(&self) {
        for _ in 0..10 {
            self.ctx.poll(false);
        }
    }

    pub(crate) fn set_no_interrupt(&self, on: bool) {
        let flags = if on { NO_INTERRUPT } else { 0 };
        self.ring.set_avail_flags(&self.memory, flags);
    }

    /// Whether NO_NOTIFY is set in the used ring's flags.
    pub(crate) fn kicks_unwanted(&self) -> bool {
        self.ring.used_flags(&self.memory) == NO_NOTIFY
    }

    /// Stores what a polling device leaves in the used ring: NO_NOTIFY, and an old avail_event.
    pub(crate) fn forbid_kicks(&self) {
        if self.features.event_idx {
            self.ring.set_avail_event(&self.memory, 0x8000);
        } else {
            self.ring.set_used_flags(&self.memory, NO_NOTIFY);
        }
    }

    pub(crate) fn avail_event(&self) -> u16 {
        self.ring.avail_event(&self.memory)
    }

    pub(crate) fn set_used_event(&self, idx: u16) {
        self.ring.set_used_event(&self.memory, idx);
    }

    fn write_desc(&self, table: u64, index: u16, desc: ring::Desc) {
        self.put(table + 16 * u64::from(index), &desc.bytes());
    }

    /// Writes a chain into a table at `table`, at the entries that `order` names.
    pub(crate) fn write_chain(&self, table: u64, order: &[u16], descs: &[Desc]) {
        for (i, desc) in descs.iter().enumerate() {
            let next = order.get(i + 1).filter(|_| i + 1 < descs.len());
            // The device ignores the link of the last descriptor.
            let unused = ring::Desc {
                next: 0xdead,
                ..desc.plain()
            };
            let desc = next.map_or(unused, |&next| desc.plain().next(next));
            self.write_desc(table, order[i], desc);
        }
    }

    /// Writes a chain into the descriptor table, at the entries that `order` names.
    pub(crate) fn direct(&self, order: &[u16], descs: &[Desc]) -> u16 {
        self.write_chain(DESC, order, descs);
        order[0]
    }

    /// Writes a chain of `direct` descriptors at `order`, and the rest into an indirect table at `table`.
    pub(crate) fn indirect(&self, order: &[u16], descs: &[Desc], direct: usize, table: u64) -> u16 {
        let (first, rest) = descs.split_at(direct);
        for (i, desc) in first.iter().enumerate() {
            self.write_desc(DESC, order[i], desc.plain().next(order[i + 1]));
        }
        let entries: Vec<u16> = (0..).take(rest.len()).collect();
        self.write_chain(table, &entries, rest);
        let len = u32::try_from(16 * rest.len()).unwrap();
        self.write_desc(DESC, order[direct], ring::indirect(table, len));
        order[0]
    }

    /// Makes a chain available. The device sees it with the next kick.
    pub(crate) fn offer(&mut self, head: u16) {
        self.ring.offer(&self.memory, head);
    }

    pub(crate) fn kick(&self) {
        (&self.kick).write_all(&1u64.to_ne_bytes()).unwrap();
    }

    pub(crate) fn used_idx(&self) -> u16 {
        self.ring.published(&self.memory)
    }

    /// Returns the next new used element: head and length.
    pub(crate) fn take_used(&mut self) -> Option<(u16, u32)> {
        let (id, len) = self.ring.take_used(&self.memory)?;
        Some((u16::try_from(id).unwrap(), len))
    }

    /// Waits until `count` more chains are used.
    pub(crate) fn wait_used(&mut self, count: u16) -> Vec<(u16, u32)> {
        let target = self.ring.used_idx.wrapping_add(count);
        self.poll_until(|vm| vm.used_idx() == target);
        (0..count).map(|_| self.take_used().unwrap()).collect()
    }

    /// Executes a read of one sector in the descriptors from `head` on.
    pub(crate) fn read(&mut self, head: u16, sector: u64) {
        self.offer_read(head, sector);
        self.kick();
        self.wait_used(1);
    }

    /// Waits until a ring has stopped. Returns the index to continue at.
    pub(crate) fn wait_stopped(&self, stopped: &Receiver<u16>) -> u16 {
        let mut base = None;
        self.poll_until(|_| {
            base = stopped.try_recv().ok();
            base.is_some()
        });
        base.expect("it has stopped")
    }

    /// Returns the device's count of notifications, without the one at the start of the ring.
    pub(crate) fn notifications(&self) -> u64 {
        self.stats.notifications.get() - 1
    }

    /// Returns the number of notifications since the last call.
    pub(crate) fn calls(&self) -> u64 {
        let mut count = [0; 8];
        if (&self.call).read(&mut count).is_err() {
            return 0;
        }
        u64::from_ne_bytes(count)
    }

    /// SET_VRING_CALL with a new eventfd.
    pub(crate) fn replace_call(&mut self) {
        self.call = eventfd();
        let call = self.call.try_clone().unwrap();
        self.run(move |queue| queue.set_call(Some(call.into())));
    }

    /// SET_VRING_KICK with a new eventfd.
    pub(crate) fn replace_kick(&mut self) {
        self.kick = eventfd();
        let kick = self.kick.try_clone().unwrap();
        self.run(move |queue| queue.set_kick(Some(kick.into())).unwrap());
    }

    pub(crate) fn byte(&self, addr: u64) -> u8 {
        self.bytes(addr, 1)[0]
    }

    pub(crate) fn bytes(&self, addr: u64, len: usize) -> Vec<u8> {
        self.memory.read(at(addr), len)
    }

    pub(crate) fn put(&self, addr: u64, data: &[u8]) {
        self.memory.write(at(addr), data);
    }

    /// Offers a read of one sector in three descriptors from `head` on. Its buffers are the 1 KiB that belong to
    /// `head`.
    pub(crate) fn offer_read(&mut self, head: u16, sector: u64) {
        let at = HEAP + 1024 * u64::from(head);
        self.put(at, &header(0, sector));
        self.put(at + 1023, &[0xff]);
        let descs = [
            Desc {
                addr: at,
                len: 16,
                writable: false,
            },
            Desc {
                addr: at + 16,
                len: 512,
                writable: true,
            },
            Desc {
                addr: at + 1023,
                len: 1,
                writable: true,
            },
        ];
        let head = self.direct(&[head, head + 1, head + 2], &descs);
        self.offer(head);
    }

    /// Offers a read of `len` bytes in three descriptors from `head` on. All such reads have the same buffers.
    pub(crate) fn offer_long_read(&mut self, head: u16, len: u32) {
        self.put(HEAP, &header(0, 0));
        let buffer = |at, len, writable| Desc {
            addr: HEAP + at,
            len,
            writable,
        };
        let descs = [
            buffer(0, 16, false),
            buffer(4096, len, true),
            buffer(512, 1, true),
        ];
        let head = self.direct(&[head, head + 1, head + 2], &descs);
        self.offer(head);
    }

    /// Returns the data of a read by [`Vm::offer_read`], if its status is OK.
    pub(crate) fn read_result(&self, head: u16) -> Option<Vec<u8>> {
        let at = HEAP + 1024 * u64::from(head);
        (self.byte(at + 1023) == 0).then(|| self.bytes(at + 16, 512))
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let stopped = self.stop();
        self.poll_until(|_| stopped.try_recv().is_ok());
        self.poll_until(|vm| vm.pool.in_flight() == 0);
        // The context drops the queue in its next pass.
        self.remote = None;
        self.poll_some();
    }
}

/// Returns the offset of a guest address in memory.
fn at(addr: u64) -> usize {
    usize::try_from(addr).unwrap()
}

/// A gate that opens on drop.
pub(crate) struct Gate {
    _open: Sender<()>,
}

struct GateWork {
    gate: Mutex<Receiver<()>>,
    entered: Sender<()>,
}

impl Work for GateWork {
    fn run(&mut self) {
        let _ = self.entered.send(());
        // `recv` fails when the gate is dropped.
        let _ = self.gate.lock().unwrap().recv();
    }

    fn complete(self: Box<Self>, _ctx: &AioContext, _outcome: Outcome) {}
}
