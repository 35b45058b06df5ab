//! A virtqueue of a disk in this very process, driven by hand: no socket, no threads but the pool's.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vhost_user_blk::aio::{AioContext, Remote};
use vhost_user_blk::blk::device::DeviceState;
use vhost_user_blk::blk::queue::{BlkQueue, RingSetup};
use vhost_user_blk::blk::stats::QueueStats;
use vhost_user_blk::blk::trouble::Trouble;
use vhost_user_blk::engine::{Choice, Engines, Plan};
use vhost_user_blk::log_limit::LogLimit;
use vhost_user_blk::memory::{GuestMemory, RegionInfo};
use vhost_user_blk::storage::{OpenOptions, Storage};
use vhost_user_blk::thread_pool::{Outcome, ThreadPool, ThreadPoolParams, Work};
use vhost_user_blk::virtqueue::{RingAddresses, RingFeatures};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

pub(crate) const MEMORY: u64 = 1 << 21;
/// The frontend's own addresses are not the guest's.
const USER: u64 = 0x7f00_0000_0000;
const DESC: u64 = 0;
const AVAIL: u64 = 0x4000;
const USED: u64 = 0x5000;
/// Buffers and indirect tables.
pub(crate) const HEAP: u64 = 0x1_0000;
/// A net against hanging, never waited for.
const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// One buffer of a chain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Desc {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) writable: bool,
}

/// A disk whose queues are on this thread; one worker.
pub(crate) struct Disk {
    engines: Engines,
    pool: ThreadPool,
    device: Arc<DeviceState>,
    // After all that is registered with it.
    ctx: AioContext,
    _image: tempfile::NamedTempFile,
}

impl Disk {
    pub(crate) fn new(image: &[u8], choice: Choice) -> Rc<Self> {
        // Only memory is read by the IOThread for sure.
        let dir = match choice {
            Choice::Auto => "/dev/shm",
            _ => env!("CARGO_TARGET_TMPDIR"),
        };
        let mut file = tempfile::NamedTempFile::new_in(dir).unwrap();
        file.write_all(image).unwrap();
        let options = OpenOptions {
            path: file.path().to_owned(),
            ..OpenOptions::default()
        };
        let device = Arc::new(DeviceState {
            name: "test".to_owned(),
            storage: Arc::new(Storage::open(&options).unwrap()),
            serial: *b"in-process\0\0\0\0\0\0\0\0\0\0",
            batch_notifications: AtomicBool::new(true),
            trouble: Trouble::default(),
            log: LogLimit::default(),
        });
        let ctx = AioContext::new().unwrap();
        ctx.set_poll_max(Duration::ZERO);
        let one = ThreadPoolParams {
            min_threads: 1,
            max_threads: 1,
        };
        let pool = ThreadPool::new(&ctx, one);
        let plan = Plan::choose(choice, &device.storage).unwrap();
        let engines = Engines::new(&ctx, plan, Arc::clone(&device.storage), pool.clone()).unwrap();
        Rc::new(Self {
            engines,
            pool,
            device,
            ctx,
            _image: file,
        })
    }
}

/// One queue of a disk, and the driver's side of it.
pub(crate) struct Vm {
    pub(crate) ctx: AioContext,
    pub(crate) memory: GuestMemoryMmap,
    pub(crate) stats: Arc<QueueStats>,
    /// Gone only while this is dropped.
    remote: Option<Remote<BlkQueue>>,
    pool: ThreadPool,
    memfd: File,
    kick: File,
    call: File,
    size: u16,
    features: RingFeatures,
    avail_idx: u16,
    seen_used: u16,
    _disk: Rc<Disk>,
}

pub(crate) fn memfd(len: u64) -> File {
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: just created, owned by nobody else.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len(len).unwrap();
    file
}

fn eventfd() -> File {
    // SAFETY: no pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: just created, owned by nobody else.
    File::from(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl Vm {
    /// A queue of `size` entries that goes on at `base`, on a disk that holds `image`, whose worker does it all.
    pub(crate) fn new(image: &[u8], size: u16, base: u16, features: RingFeatures) -> Self {
        Self::on(&Disk::new(image, Choice::Threads), size, base, features)
    }

    /// A further queue of a disk.
    pub(crate) fn on(disk: &Rc<Disk>, size: u16, base: u16, features: RingFeatures) -> Self {
        let (ctx, stats): (_, Arc<QueueStats>) = (&disk.ctx, Arc::default());
        let (device, engine) = (Arc::clone(&disk.device), disk.engines.engine());
        let remote = BlkQueue::create(ctx, 0, device, Arc::clone(&stats), engine);
        let memfd = memfd(MEMORY);
        let vm = Self {
            memory: map(&memfd),
            remote: Some(remote),
            pool: disk.pool.clone(),
            stats,
            ctx: ctx.clone(),
            memfd,
            kick: eventfd(),
            call: eventfd(),
            size,
            features,
            avail_idx: base,
            seen_used: base,
            _disk: Rc::clone(disk),
        };
        // A ring that goes on somewhere has got that far.
        vm.write_u16(AVAIL + 2, base);
        vm.write_u16(USED + 2, base);
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
        Arc::new(GuestMemory::map([(info, self.memfd.try_clone().unwrap())]).unwrap())
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
            size: self.size.into(),
            base,
            features: self.features,
            inflight: None,
            log: None,
        };
        let (kick, call) = (self.kick.try_clone().unwrap(), self.call.try_clone().unwrap());
        self.run(move |queue| {
            queue.set_call(Some(Arc::new(call)));
            queue.start(setup).unwrap();
            queue.set_enabled(true);
            queue.set_kick(Some(kick)).unwrap();
        });
    }

    /// Runs `f` on the queue, in this thread's next pass.
    pub(crate) fn run(&self, f: impl FnOnce(&BlkQueue) + Send + 'static) {
        let remote = self.remote.as_ref().unwrap();
        remote.post(move |queue| f(queue)).unwrap();
        self.ctx.poll(false);
    }

    /// Replaces the memory table by one that maps the same file again.
    pub(crate) fn remap(&self) {
        let memory = self.guest_memory();
        self.run(move |queue| queue.set_memory(&memory));
    }

    /// Asks for the ring's stop; the receiver gets the base once all is answered.
    pub(crate) fn stop(&self) -> Receiver<u16> {
        let (done, stopped) = mpsc::channel();
        self.run(move |queue| queue.stop(done));
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
        // The worker is asked for from a bottom half.
        self.poll_until(|_| inside.try_recv().is_ok());
        Gate { _open: open }
    }

    /// Works that the pool has.
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

    /// Waits until the worker is through, while nothing is reaped.
    pub(crate) fn wait_for_worker(&self) {
        let start = Instant::now();
        while (self.pool.counters().queued, self.pool.counters().active) != (0, 0) {
            assert!(start.elapsed() < DEADLINE, "the worker does not end");
            std::thread::yield_now();
        }
    }

    /// A few passes, in which nothing is expected.
    pub(crate) fn poll_some(&self) {
        for _ in 0..10 {
            self.ctx.poll(false);
        }
    }

    pub(crate) fn write_u16(&self, at: u64, value: u16) {
        self.memory.write_obj(value.to_le(), GuestAddress(at)).unwrap();
    }

    pub(crate) fn read_u16(&self, at: u64) -> u16 {
        u16::from_le(self.memory.read_obj(GuestAddress(at)).unwrap())
    }

    pub(crate) fn set_no_interrupt(&self, on: bool) {
        self.write_u16(AVAIL, on.into());
    }

    /// NO_NOTIFY in the used ring's flags.
    pub(crate) fn kicks_unwanted(&self) -> bool {
        self.read_u16(USED) == 1
    }

    /// What a device that polls leaves in the used ring: NO_NOTIFY, and an avail_event that lies behind.
    pub(crate) fn forbid_kicks(&self) {
        if self.features.event_idx {
            self.write_u16(USED + 4 + 8 * u64::from(self.size), 0x8000);
        } else {
            self.write_u16(USED, 1);
        }
    }

    pub(crate) fn avail_event(&self) -> u16 {
        self.read_u16(USED + 4 + 8 * u64::from(self.size))
    }

    pub(crate) fn set_used_event(&self, idx: u16) {
        self.write_u16(AVAIL + 4 + 2 * u64::from(self.size), idx);
    }

    fn write_desc(&self, at: u64, desc: Desc, flags: u16, next: u16) {
        let put = |at, bytes: &[u8]| self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
        put(at, &desc.addr.to_le_bytes());
        put(at + 8, &desc.len.to_le_bytes());
        put(at + 12, &flags.to_le_bytes());
        put(at + 14, &next.to_le_bytes());
    }

    /// Writes a chain into a table at `table`, at the entries that `order` names.
    pub(crate) fn write_chain(&self, table: u64, order: &[u16], descs: &[Desc]) {
        for (i, desc) in descs.iter().enumerate() {
            let next = order.get(i + 1).filter(|_| i + 1 < descs.len());
            let flags = if desc.writable { WRITE } else { 0 } | if next.is_some() { NEXT } else { 0 };
            self.write_desc(
                table + 16 * u64::from(order[i]),
                *desc,
                flags,
                next.copied().unwrap_or(0xdead),
            );
        }
    }

    /// A chain in the descriptor table, its entries in the given order.
    pub(crate) fn direct(&self, order: &[u16], descs: &[Desc]) -> u16 {
        self.write_chain(DESC, order, descs);
        order[0]
    }

    /// A chain of `direct` descriptors in the table at `order`, the rest in an indirect table at `table`.
    pub(crate) fn indirect(&self, order: &[u16], descs: &[Desc], direct: usize, table: u64) -> u16 {
        let (first, rest) = descs.split_at(direct);
        for (i, desc) in first.iter().enumerate() {
            let flags = if desc.writable { WRITE } else { 0 } | NEXT;
            self.write_desc(DESC + 16 * u64::from(order[i]), *desc, flags, order[i + 1]);
        }
        let entries: Vec<u16> = (0..).take(rest.len()).collect();
        self.write_chain(table, &entries, rest);
        let len = u32::try_from(16 * rest.len()).unwrap();
        let head = DESC + 16 * u64::from(order[direct]);
        self.write_desc(
            head,
            Desc {
                addr: table,
                len,
                writable: false,
            },
            INDIRECT,
            0,
        );
        order[0]
    }

    /// Makes a chain available; it is seen with the next kick.
    pub(crate) fn offer(&mut self, head: u16) {
        self.write_u16(AVAIL + 4 + 2 * u64::from(self.avail_idx % self.size), head);
        self.avail_idx = self.avail_idx.wrapping_add(1);
        self.write_u16(AVAIL + 2, self.avail_idx);
    }

    pub(crate) fn kick(&self) {
        (&self.kick).write_all(&1u64.to_ne_bytes()).unwrap();
    }

    pub(crate) fn used_idx(&self) -> u16 {
        self.read_u16(USED + 2)
    }

    /// The next used element that was not looked at: head and length.
    pub(crate) fn take_used(&mut self) -> Option<(u16, u32)> {
        if self.seen_used == self.used_idx() {
            return None;
        }
        let at = USED + 4 + 8 * u64::from(self.seen_used % self.size);
        self.seen_used = self.seen_used.wrapping_add(1);
        let word = |at| u32::from_le(self.memory.read_obj(GuestAddress(at)).unwrap());
        Some((u16::try_from(word(at)).unwrap(), word(at + 4)))
    }

    /// Waits until `count` more chains are used.
    pub(crate) fn wait_used(&mut self, count: u16) -> Vec<(u16, u32)> {
        let target = self.seen_used.wrapping_add(count);
        self.poll_until(|vm| vm.used_idx() == target);
        (0..count).map(|_| self.take_used().unwrap()).collect()
    }

    /// Notifications since the last question.
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
        self.run(move |queue| queue.set_call(Some(Arc::new(call))));
    }

    /// SET_VRING_KICK with a new eventfd.
    pub(crate) fn replace_kick(&mut self) {
        self.kick = eventfd();
        let kick = self.kick.try_clone().unwrap();
        self.run(move |queue| queue.set_kick(Some(kick)).unwrap());
    }

    pub(crate) fn byte(&self, at: u64) -> u8 {
        self.memory.read_obj(GuestAddress(at)).unwrap()
    }

    pub(crate) fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.memory.read_slice(&mut data, GuestAddress(at)).unwrap();
        data
    }

    pub(crate) fn put(&self, at: u64, data: &[u8]) {
        self.memory.write_slice(data, GuestAddress(at)).unwrap();
    }

    /// A read of one sector in three descriptors from `head` on, its buffers in the 1 KiB that belong to `head`.
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

    /// What a read by [`Vm::offer_read`] brought, if its status is OK.
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
        // The context lets go of the queue in its next pass.
        self.remote = None;
        self.poll_some();
    }
}

fn map(file: &File) -> GuestMemoryMmap {
    let file = FileOffset::new(file.try_clone().unwrap(), 0);
    let size = usize::try_from(MEMORY).unwrap();
    GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), size, Some(file))]).unwrap()
}

pub(crate) fn header(request_type: u32, sector: u64) -> Vec<u8> {
    [&request_type.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

/// Opens when dropped.
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
        // Ends with an error when the gate is dropped.
        let _ = self.gate.lock().unwrap().recv();
    }

    fn complete(self: Box<Self>, _ctx: &AioContext, _outcome: Outcome) {}
}
