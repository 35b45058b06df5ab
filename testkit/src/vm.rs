//! A hand-made guest: the test writes rings and descriptors as bytes, wherever it wants.
//!
//! Frontend and guest addresses differ, so that a test notices when they are confused.

use std::ops::{Deref, DerefMut};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::ring::{DriverRing, table};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::daemon::Daemon;
use crate::memory::{PATIENCE, SharedMemory, wait_readable};
use crate::raw::{Answer, Client, Region, VERSION_1, mem_table, msg};

pub use crate::blk::header;
pub use crate::ring::{Desc, INDIRECT, NEXT, WRITE, indirect, linked, readable, writable};

/// Guest address of the memory's start.
pub const GUEST: u64 = 0x10_0000;
/// The frontend's own address of the same byte.
pub const USER: u64 = 0x7f00_0000_0000;
/// The size of the memory.
pub const MEMORY: usize = 1 << 20;

/// Guest addresses of a request's usual parts.
pub const HEADER: u64 = GUEST + 0x8_0000;
pub const STATUS: u64 = GUEST + 0x8_1000;
pub const TABLE: u64 = GUEST + 0x8_2000;
pub const SEGMENTS: u64 = GUEST + 0x8_4000;
pub const DATA: u64 = GUEST + 0x9_0000;

/// The initial content of memory, and a status that no backend writes.
pub const FILL: u8 = 0xa5;

pub const SECTOR: usize = 512;

const INDIRECT_DESC: u64 = 1 << 28;
pub const EVENT_IDX: u64 = 1 << 29;
/// All device features of virtio-blk.
pub const BLK: u64 = 0xff_ffff;

/// A ring and its events.
#[derive(Debug)]
pub struct Ring {
    driver: DriverRing,
    pub kick: EventFd,
    pub call: EventFd,
    pub err: EventFd,
}

impl Ring {
    /// Returns a ring of `size` entries in the `index`th 64 KiB of memory.
    pub fn new(index: usize, size: u16) -> Self {
        let base = index << 16;
        let event = || EventFd::new(EFD_NONBLOCK).expect("create an eventfd");
        Self {
            driver: DriverRing::new(size, base, base + 0x5000, base + 0x8000),
            kick: event(),
            call: event(),
            err: event(),
        }
    }
}

impl Deref for Ring {
    type Target = DriverRing;

    fn deref(&self) -> &DriverRing {
        &self.driver
    }
}

impl DerefMut for Ring {
    fn deref_mut(&mut self) -> &mut DriverRing {
        &mut self.driver
    }
}

/// A connection with memory and rings.
#[derive(Debug)]
pub struct Vm {
    pub client: Client,
    pub memory: SharedMemory,
    pub rings: Vec<Ring>,
}

impl Vm {
    /// Connects, shares memory and starts `queues` rings of 16 entries, without EVENT_IDX.
    pub fn start(daemon: &Daemon, queues: usize) -> Self {
        Self::start_with(daemon, queues, 16, 0)
    }

    /// Starts `queues` rings of `size` entries with more ring features.
    pub fn start_with(daemon: &Daemon, queues: usize, size: u16, features: u64) -> Self {
        let mut vm = Self::connect(daemon, features);
        vm.share_memory();
        for index in 0..queues {
            vm.start_ring(index, Ring::new(index, size));
        }
        vm
    }

    /// Connects and negotiates, without memory and rings.
    pub fn connect(daemon: &Daemon, features: u64) -> Self {
        Self::on(daemon.connect(), features)
    }

    /// Negotiates on a new connection, without memory and rings.
    pub fn on(stream: UnixStream, features: u64) -> Self {
        let mut client = Client::new(stream);
        client
            .negotiate(VERSION_1 | INDIRECT_DESC | BLK | features)
            .expect("negotiate");
        let memory = SharedMemory::new(MEMORY);
        memory.write(0x8_0000, &[FILL; MEMORY - 0x8_0000]);
        Self {
            client,
            memory,
            rings: Vec::new(),
        }
    }

    /// Connects to a restarted daemon with the same memory.
    pub fn reconnect(&mut self, stream: UnixStream, features: u64) {
        // The daemon serves one frontend at a time.
        self.client.leave();
        self.client = Self::on(stream, features).client;
    }

    /// Starts all rings at the used index, as QEMU does after losing its backend.
    pub fn restart_rings(&mut self) {
        for (index, mut ring) in std::mem::take(&mut self.rings).into_iter().enumerate() {
            let used_idx = ring.published(&self.memory);
            let avail_idx = std::mem::replace(&mut ring.avail_idx, used_idx);
            self.start_ring(index, ring);
            self.rings[index].avail_idx = avail_idx;
        }
    }

    pub fn share_memory(&mut self) {
        let table = mem_table(&[REGION]);
        let fd = self.memory.fd();
        assert_eq!(
            self.client.ask(msg::SET_MEM_TABLE, &table, &[fd]),
            Answer::Ack,
            "SET_MEM_TABLE"
        );
    }

    /// Sets up a ring completely and enables it.
    pub fn start_ring(&mut self, index: usize, ring: Ring) {
        self.set_up_ring(index, &ring);
        let enabled = self.client.vring_state(msg::SET_VRING_ENABLE, word(index), 1);
        assert_eq!(enabled, Answer::Ack, "SET_VRING_ENABLE");
        self.rings.push(ring);
    }

    /// Sets up a ring, without enabling it.
    pub fn set_up_ring(&mut self, index: usize, ring: &Ring) {
        use std::os::fd::AsRawFd;
        let client = &mut self.client;
        let user = |offset: usize| USER + offset as u64;
        let i = word(index);
        let ok = |what: &str, answer| assert_eq!(answer, Answer::Ack, "{what}");
        ok(
            "SET_VRING_NUM",
            client.vring_state(msg::SET_VRING_NUM, i, u32::from(ring.size)),
        );
        ok(
            "SET_VRING_BASE",
            client.vring_state(msg::SET_VRING_BASE, i, u32::from(ring.avail_idx)),
        );
        ok(
            "SET_VRING_ADDR",
            client.vring_addr(i, user(ring.desc), user(ring.used), user(ring.avail)),
        );
        for (request, fd) in [
            (msg::SET_VRING_ERR, &ring.err),
            (msg::SET_VRING_CALL, &ring.call),
            (msg::SET_VRING_KICK, &ring.kick),
        ] {
            ok(
                "SET_VRING_*",
                client.vring_fd(request, u64::from(i), Some(fd.as_raw_fd())),
            );
        }
    }

    /// Writes at a guest address.
    pub fn poke(&self, addr: u64, bytes: &[u8]) {
        self.memory.write(offset(addr), bytes);
    }

    /// Reads at a guest address.
    pub fn peek(&self, addr: u64, len: usize) -> Vec<u8> {
        self.memory.read(offset(addr), len)
    }

    /// Writes descriptors into the table of queue `queue`, from index `first`.
    pub fn put_descs(&self, queue: usize, first: u16, descs: &[Desc]) {
        self.rings[queue].put_descs(&self.memory, first, descs);
    }

    /// Writes an indirect table.
    pub fn put_table(&self, addr: u64, descs: &[Desc]) {
        self.poke(addr, &table(descs));
    }

    /// Makes `head` available, without a kick.
    pub fn publish(&mut self, queue: usize, head: u16) {
        self.rings[queue].offer(&self.memory, head);
    }

    pub fn kick(&self, queue: usize) {
        self.rings[queue].kick.write(1).expect("kick");
    }

    /// Waits until the thread of an enabled ring has looked at earlier kicks: it executes these messages.
    pub fn serve_kicks(&mut self, queue: usize) {
        for _ in 0..2 {
            let enabled = self.client.vring_state(msg::SET_VRING_ENABLE, word(queue), 1);
            assert_eq!(enabled, Answer::Ack, "SET_VRING_ENABLE");
        }
    }

    /// Puts a linked chain at index 0, makes it available and kicks.
    pub fn send(&mut self, queue: usize, chain: &[Desc]) {
        self.put_descs(queue, 0, &linked(0, chain));
        self.publish(queue, 0);
        self.kick(queue);
    }

    /// Returns the used index that the backend published.
    pub fn published(&self, queue: usize) -> u16 {
        self.rings[queue].published(&self.memory)
    }

    /// Spins until the used index is `end`. Meanwhile, keeps asking for a notification of the next completion.
    pub fn spin_until_used(&mut self, queue: usize, end: u16) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let index = self.published(queue);
            self.rings[queue].set_used_event(&self.memory, index);
            if index == end {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "used index {index} does not become {end}"
            );
        }
        self.rings[queue].used_idx = end;
    }

    /// Takes a used element, if there is one: (id, len).
    pub fn take_used(&mut self, queue: usize) -> Option<(u32, u32)> {
        self.rings[queue].take_used(&self.memory)
    }

    /// Waits for the next used element or for the ring to break.
    pub fn outcome(&mut self, queue: usize) -> Outcome {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some((id, len)) = self.take_used(queue) {
                return Outcome::Used { id, len };
            }
            if wait_readable(&self.rings[queue].err, Duration::from_millis(1)) {
                // A chain may have completed just before the ring broke.
                let last = self.take_used(queue);
                return last.map_or(Outcome::Broken, |(id, len)| Outcome::Used { id, len });
            }
            assert!(
                Instant::now() < deadline,
                "queue {queue} neither answers nor breaks"
            );
        }
    }

    /// Sends a chain. Returns its status byte and used length, or `None` if the ring broke.
    pub fn request(&mut self, queue: usize, chain: &[Desc]) -> Option<(u8, u32)> {
        self.poke(STATUS, &[FILL]);
        self.send(queue, chain);
        match self.outcome(queue) {
            Outcome::Used { id, len } => {
                assert_eq!(id, 0, "another chain completed");
                Some((self.peek(STATUS, 1)[0], len))
            }
            Outcome::Broken => None,
        }
    }

    /// Reads a sector with a header, data and a status that no other request uses.
    pub fn read_sector_with(&mut self, queue: usize, sector: u64) {
        let at = GUEST + 0xf_0000;
        self.poke(at, &header(0, sector));
        self.poke(at + 0x400, &[FILL]);
        let chain = [
            readable(at, 16),
            writable(at + 0x200, 512),
            writable(at + 0x400, 1),
        ];
        self.send(queue, &chain);
        assert_eq!(self.outcome(queue), Outcome::Used { id: 0, len: 513 });
        assert_eq!(self.peek(at + 0x400, 1), [0], "an ordinary read fails");
    }

    /// Reads a sector the ordinary way.
    pub fn read_sector(&mut self, queue: usize, sector: u64) -> Vec<u8> {
        self.poke(HEADER, &header(0, sector));
        let chain = [readable(HEADER, 16), writable(DATA, 512), writable(STATUS, 1)];
        assert_eq!(
            self.request(queue, &chain),
            Some((0, 513)),
            "an ordinary read fails"
        );
        self.peek(DATA, SECTOR)
    }
}

/// All of the memory as one region.
pub const REGION: Region = Region {
    guest_addr: GUEST,
    size: MEMORY as u64,
    user_addr: USER,
    mmap_offset: 0,
};

/// The outcome of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Used {
        id: u32,
        len: u32,
    },
    /// The ring's error eventfd fired.
    Broken,
}

fn offset(addr: u64) -> usize {
    usize::try_from(addr.checked_sub(GUEST).expect("a guest address")).expect("it fits")
}

fn word(index: usize) -> u32 {
    u32::try_from(index).expect("a small index")
}
