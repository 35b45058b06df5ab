//! While a VM migrates, every guest page that the daemon writes is marked in the log, and no other page.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use testkit::daemon::Daemon;
use testkit::memory::{SharedMemory, memfd};
use testkit::raw::{Answer, LOG_ALL, PROTOCOL_FEATURES, Region, VERSION_1, msg};
use testkit::target::{assert_serves, options, start, start_with};
use testkit::vm::{DATA, GUEST, HEADER, MEMORY, Ring, STATUS, USER, Vm, header, readable, writable};

const PAGE: u64 = 4096;
/// The size of a log that covers all of memory.
const LOG_LEN: u64 = (GUEST + MEMORY as u64) / PAGE / 8;
/// The offset of the log in its file.
const LOG_OFFSET: u64 = PAGE;

/// A log as QEMU creates it, and a VM with a running ring.
struct Migration {
    vm: Vm,
    log: File,
}

impl Migration {
    /// Starts a VM with a log that is not switched on.
    fn prepare(daemon: &Daemon) -> Self {
        let vm = Vm::start(daemon, 1);
        let mut migration = Self {
            vm,
            log: memfd(2 * PAGE),
        };
        let fd = migration.log.as_raw_fd();
        let client = &mut migration.vm.client;
        let reply = client.set_log(LOG_LEN, LOG_OFFSET, fd);
        assert!(reply.is_some(), "SET_LOG_BASE");
        migration
    }

    fn set_features(&mut self, features: u64) {
        let features = VERSION_1 | PROTOCOL_FEATURES | features;
        let answer = self
            .vm
            .client
            .ask(msg::SET_FEATURES, &features.to_le_bytes(), &[]);
        assert_eq!(answer, Answer::Ack, "SET_FEATURES");
    }

    /// Switches logging of the used ring on or off while the ring runs. The used ring's marks go to the guest address
    /// `used`, which has no other use.
    fn log_used(&mut self, used: Option<u64>) {
        let ring = &self.vm.rings[0];
        let parts = [ring.desc, ring.used, ring.avail].map(|offset| USER + offset as u64);
        let answer = self.vm.client.vring_addr_logged(0, parts, used);
        assert_eq!(answer, Answer::Ack, "SET_VRING_ADDR");
    }

    /// Returns and clears the pages marked since the last call, as guest addresses.
    fn dirty(&mut self) -> BTreeSet<u64> {
        let mut bytes = vec![0; usize::try_from(LOG_LEN).expect("it fits")];
        self.log
            .read_exact_at(&mut bytes, LOG_OFFSET)
            .expect("read the log");
        self.log
            .write_all_at(&vec![0; bytes.len()], LOG_OFFSET)
            .expect("clear the log");
        let marked = |&page: &u64| {
            let byte = bytes[usize::try_from(page / 8).expect("it fits")];
            byte & (1 << (page % 8)) != 0
        };
        (0..LOG_LEN * 8).filter(marked).map(|page| page * PAGE).collect()
    }

    /// Reads `len` bytes at sector 0 into a guest address.
    fn read(&mut self, to: u64, len: u32) {
        self.vm.poke(HEADER, &header(0, 0));
        let chain = [readable(HEADER, 16), writable(to, len), writable(STATUS, 1)];
        assert_eq!(self.vm.request(0, &chain), Some((0, len + 1)));
        self.settle();
    }

    /// Waits until the IOThread has finished, because it marks the used ring after publishing the index.
    fn settle(&mut self) {
        let answer = self.vm.client.vring_state(msg::SET_VRING_ENABLE, 0, 1);
        assert_eq!(answer, Answer::Ack, "SET_VRING_ENABLE");
    }
}

fn pages(of: &[u64]) -> BTreeSet<u64> {
    of.iter().map(|addr| addr / PAGE * PAGE).collect()
}

#[test]
fn reads_mark_data_and_status_once_logging_starts() {
    let (daemon, _) = start();
    let mut migration = Migration::prepare(&daemon);
    migration.read(DATA, 512);
    assert_eq!(migration.dirty(), pages(&[]), "logging is off");

    migration.set_features(LOG_ALL);
    // The range covers the last byte of a page, two whole pages, and the start of the next one.
    let start = DATA + PAGE - 1;
    migration.read(start, 2 * 4096 + 512);
    let expected = pages(&[DATA, DATA + PAGE, DATA + 2 * PAGE, DATA + 3 * PAGE, STATUS]);
    assert_eq!(migration.dirty(), expected);

    migration.set_features(0);
    migration.read(DATA, 512);
    assert_eq!(migration.dirty(), pages(&[]), "logging is off again");
}

#[test]
fn writes_and_flushes_mark_nothing_but_their_status() {
    let (daemon, _) = start();
    let mut migration = Migration::prepare(&daemon);
    migration.set_features(LOG_ALL);
    for kind in [1, 4] {
        migration.vm.poke(HEADER, &header(kind, 0));
        let chain = [readable(HEADER, 16), readable(DATA, 512), writable(STATUS, 1)];
        assert_eq!(migration.vm.request(0, &chain), Some((0, 1)));
        migration.settle();
        assert_eq!(migration.dirty(), pages(&[STATUS]), "request type {kind}");
    }
}

#[test]
fn get_id_and_refusals_mark_what_they_write() {
    let (daemon, _) = start();
    let mut migration = Migration::prepare(&daemon);
    migration.set_features(LOG_ALL);
    for (kind, data) in [(8, &[DATA][..]), (77, &[])] {
        migration.vm.poke(HEADER, &header(kind, 0));
        let chain = [readable(HEADER, 16), writable(DATA, 20), writable(STATUS, 1)];
        migration.vm.request(0, &chain);
        migration.settle();
        let expected = pages(&[data, &[STATUS]].concat());
        assert_eq!(migration.dirty(), expected, "request type {kind}");
    }
}

#[test]
fn used_ring_logging_follows_the_frontends_request() {
    // At its end, polling would also write to the used ring: the flag that asks the driver for kicks again.
    let (daemon, _) = start_with(&[&options()[..], &["--poll-max-ns", "0"]].concat());
    let mut migration = Migration::prepare(&daemon);
    let used = GUEST + 0x5_0000;
    migration.log_used(Some(used));
    migration.read(DATA, 512);
    assert_eq!(migration.dirty(), pages(&[]), "LOG_ALL is not set");
    migration.set_features(LOG_ALL);
    migration.read(DATA, 512);
    assert_eq!(migration.dirty(), pages(&[DATA, STATUS, used]));
    migration.log_used(None);
    migration.read(DATA, 512);
    assert_eq!(migration.dirty(), pages(&[DATA, STATUS]));
}

#[test]
fn hostile_logs_are_refused() {
    let (daemon, _) = start();
    for (what, size, offset) in [
        ("too small", LOG_LEN - 1, 0),
        ("beyond the file", 2 * PAGE + 1, 0),
        ("starts behind the file", LOG_LEN, 2 * PAGE),
        ("misaligned", LOG_LEN, 1),
        ("wraps around", LOG_LEN, u64::MAX - PAGE + 1),
        ("huge", u64::MAX, 0),
        ("empty", 0, 0),
    ] {
        let mut vm = Vm::start(&daemon, 1);
        let log = memfd(2 * PAGE);
        let reply = vm.client.set_log(size, offset, log.as_raw_fd());
        assert!(reply.is_none(), "{what}");
    }
    let mut vm = Vm::start(&daemon, 1);
    let ring = [0, 0, 0].map(|offset| USER + offset);
    let answer = vm.client.vring_addr_logged(0, ring, Some(u64::MAX - 5));
    assert_eq!(answer, Answer::Nak, "the used ring wraps around");
    drop(vm);
    assert_serves(&daemon);
}

#[test]
fn a_sealed_log_cannot_be_cut_short() {
    let (daemon, _) = start();
    let migration = Migration::prepare(&daemon);
    assert!(migration.log.set_len(0).is_err());
}

#[test]
fn memory_beyond_the_dirty_log_is_refused() {
    let (daemon, _) = start();
    let mut migration = Migration::prepare(&daemon);
    migration.set_features(LOG_ALL);
    let dimm = SharedMemory::new(MEMORY);
    let region = Region {
        guest_addr: GUEST + MEMORY as u64,
        size: MEMORY as u64,
        user_addr: USER + (1 << 32),
        mmap_offset: 0,
    };
    let client = &mut migration.vm.client;
    let answer = client.mem_region(msg::ADD_MEM_REG, region, &[dimm.fd()]);
    assert_eq!(answer, Answer::Nak);
    let reply = client.set_log(PAGE, LOG_OFFSET, migration.log.as_raw_fd());
    assert!(reply.is_some(), "SET_LOG_BASE");
    let answer = client.mem_region(msg::ADD_MEM_REG, region, &[dimm.fd()]);
    assert_eq!(answer, Answer::Ack);
    migration.read(region.guest_addr, 512);
    let mut byte = [0];
    let at = LOG_OFFSET + region.guest_addr / PAGE / 8;
    migration.log.read_exact_at(&mut byte, at).expect("read the log");
    assert_eq!(byte[0] & 1, 1, "the new region's first page");
}

#[test]
fn logging_that_is_refused_leaves_no_trace() {
    let (daemon, _) = start();
    let mut migration = Migration::prepare(&daemon);
    let dimms = [1, 2].map(|n| {
        let region = Region {
            guest_addr: GUEST + n * MEMORY as u64,
            size: MEMORY as u64,
            user_addr: USER + (n << 32),
            mmap_offset: 0,
        };
        (region, SharedMemory::new(MEMORY))
    });
    let add = |migration: &mut Migration, n: usize| {
        let (region, memory) = &dimms[n];
        let client = &mut migration.vm.client;
        client.mem_region(msg::ADD_MEM_REG, *region, &[memory.fd()])
    };
    // The region lies past the log, which is not in use yet.
    assert_eq!(add(&mut migration, 0), Answer::Ack);
    let features = VERSION_1 | PROTOCOL_FEATURES | LOG_ALL;
    let client = &mut migration.vm.client;
    let answer = client.ask(msg::SET_FEATURES, &features.to_le_bytes(), &[]);
    assert_eq!(answer, Answer::Nak, "the log is too small");
    assert_eq!(add(&mut migration, 1), Answer::Ack, "and still not in use");
    migration.read(DATA, 512);
    assert_eq!(migration.dirty(), pages(&[]));
}

#[test]
fn a_ring_started_while_logging_logs_at_once() {
    let (daemon, _) = start();
    let mut vm = Vm::connect(&daemon, LOG_ALL);
    vm.share_memory();
    let log = memfd(2 * PAGE);
    assert!(vm.client.set_log(LOG_LEN, LOG_OFFSET, log.as_raw_fd()).is_some());
    vm.start_ring(0, Ring::new(0, 16));
    let mut migration = Migration { vm, log };
    migration.read(DATA, 512);
    assert_eq!(migration.dirty(), pages(&[DATA, STATUS]));
}
