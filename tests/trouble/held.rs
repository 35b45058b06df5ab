//! Held requests across a stop, an exit, a restart and a migration.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::Duration;

use crate::{NO_ROOM, ROOM_AGAIN, engines, said};
use testkit::daemon::Daemon;
use testkit::full::SmallDisk;
use testkit::inflight::Inflight;
use testkit::memory::memfd;
use testkit::process::wait_for;
use testkit::raw::{
    Answer, GET_VRING_BASE_INFLIGHT, GET_VRING_BASE_SKIP_DRAIN, LOG_ALL, PROTOCOL_FEATURES, VERSION_1, msg,
};
use testkit::vm::{
    DATA, FILL, GUEST, HEADER, MEMORY, Outcome, Ring, STATUS, USER, Vm, header, linked, readable, writable,
};

const OUT: u32 = 1;
const BYTES: u32 = 8192;
const WRITES: u16 = 4;
const OK: u8 = 0;
const IOERR: u8 = 1;

/// A VM on a full disk, with all its writes held.
struct Full {
    vm: Vm,
    region: Option<Inflight>,
    daemon: Daemon,
    disk: SmallDisk,
}

impl Full {
    fn new(options: &[&str], tracked: bool) -> Option<Self> {
        let disk = SmallDisk::mount(1 << 20)?;
        disk.make_image(1 << 20);
        disk.fill(0);
        let daemon = disk.daemon(options);
        let mut vm = Vm::connect(&daemon, 0);
        let region = tracked.then(|| Inflight::get(&mut vm.client, 1, 16));
        let mut full = Self {
            vm,
            region,
            daemon,
            disk,
        };
        full.set_up();
        let ring = Ring::new(0, 16);
        full.vm.start_ring(0, ring);
        for i in 0..WRITES {
            full.put_write(i);
        }
        full.vm.kick(0);
        full.wait_until_held();
        Some(full)
    }

    fn set_up(&mut self) {
        if let Some(region) = &self.region {
            assert_eq!(region.set(&mut self.vm.client), Answer::Ack);
        }
        self.vm.share_memory();
    }

    fn put_write(&mut self, i: u16) {
        let slot = u64::from(i);
        let (head, status, data) = (HEADER + 16 * slot, STATUS + slot, DATA + slot * u64::from(BYTES));
        self.vm.poke(head, &header(OUT, slot * u64::from(BYTES / 512)));
        self.vm.poke(status, &[FILL]);
        self.vm.poke(data, &[i.to_le_bytes()[0] + 1; BYTES as usize]);
        let chain = [readable(head, 16), readable(data, BYTES), writable(status, 1)];
        self.vm.put_descs(0, 3 * i, &linked(3 * i, &chain));
        self.vm.publish(0, 3 * i);
    }

    fn wait_until_held(&mut self) {
        let held = u64::from(WRITES);
        wait_for("the writes to be held", || {
            (self.daemon.count("total", "held") >= held).then_some(())
        });
    }

    /// Stops the ring and returns the index to continue at.
    fn stop(&mut self) -> u16 {
        let base = self.vm.client.stop_ring(0).expect("the stop is answered");
        u16::try_from(base).expect("16 bits")
    }

    /// Starts the ring again at `base`, without a kick.
    fn go_on(&mut self, base: u16) {
        let mut ring = self.vm.rings.pop().expect("it is there");
        let avail_idx = std::mem::replace(&mut ring.avail_idx, base);
        let _ = ring.kick.read();
        self.vm.start_ring(0, ring);
        self.vm.rings[0].avail_idx = avail_idx;
    }

    /// Moves the guest to another QEMU and restarts the daemon. All that this QEMU knows about the requests in flight
    /// is the answer to GET_VRING_BASE.
    fn migrate(&mut self, base: u16) {
        self.daemon.restart(libc::SIGTERM);
        let stream = self.daemon.connect();
        self.vm.reconnect(stream, 0);
        if self.region.is_some() {
            self.region = Some(Inflight::get(&mut self.vm.client, 1, 16));
        }
        self.set_up();
        self.go_on(base);
    }

    /// Completes a read, which needs no space.
    fn put_read(&mut self, i: u16) {
        self.vm.poke(HEADER + 0x800, &header(0, 0));
        let chain = [
            readable(HEADER + 0x800, 16),
            writable(STATUS + 0x200, 512),
            writable(STATUS + 0x800, 1),
        ];
        self.vm.put_descs(0, 3 * i, &linked(3 * i, &chain));
        self.vm.publish(0, 3 * i);
        self.vm.kick(0);
        let used = Outcome::Used {
            id: (3 * i).into(),
            len: 513,
        };
        assert_eq!(self.vm.outcome(0), used);
    }

    /// Switches dirty logging on, as for a migration of the guest.
    fn log_dirty_pages(&mut self) -> File {
        let log = memfd(4096);
        let bits = (GUEST + MEMORY as u64) / 4096 / 8;
        assert!(self.vm.client.set_log(bits, 0, log.as_raw_fd()).is_some());
        let features = (VERSION_1 | PROTOCOL_FEATURES | LOG_ALL).to_le_bytes();
        assert_eq!(self.vm.client.ask(msg::SET_FEATURES, &features, &[]), Answer::Ack);
        let ring = &self.vm.rings[0];
        let addresses = [ring.desc, ring.used, ring.avail].map(|offset| USER + offset as u64);
        let used = GUEST + ring.used as u64;
        let logged = self.vm.client.vring_addr_logged(0, addresses, Some(used));
        assert_eq!(logged, Answer::Ack);
        log
    }

    fn statuses(&self) -> Vec<u8> {
        self.vm.peek(STATUS, WRITES.into())
    }

    /// Starts the ring again, as the same frontend does after a stop or a restart of the daemon.
    fn resume(&mut self) {
        self.set_up();
        self.vm.restart_rings();
    }

    /// Checks that all writes complete with OK, and that the data is on the disk.
    fn assert_done(&mut self) {
        for _ in 0..WRITES {
            assert!(matches!(self.vm.outcome(0), Outcome::Used { len: 1, .. }));
        }
        assert_eq!(self.statuses(), [OK; WRITES as usize]);
        let image = std::fs::read(self.disk.image()).expect("read the image");
        for (i, block) in (1u8..).zip(image.chunks(BYTES as usize).take(WRITES.into())) {
            assert!(block.iter().all(|byte| *byte == i), "write {i}");
        }
        if let Some(region) = &self.region {
            // The mark is cleared right after the used index that we just saw.
            wait_for("the marks to go", || region.marked(0).is_empty().then_some(()));
        }
    }
}

#[test]
fn a_stopping_ring_gives_held_requests_back() {
    for tracked in [false, true] {
        let Some(mut full) = Full::new(&[], tracked) else {
            return;
        };
        // The held requests are the last ones in the available ring, so any backend can take them again from there.
        assert_eq!(full.stop(), 0);
        assert!(
            full.vm.rings[0].kick.read().is_ok(),
            "the next backend is not told"
        );
        assert_eq!(full.statuses(), [FILL; WRITES as usize]);
        assert_eq!((full.vm.published(0), full.daemon.count("total", "held")), (0, 0));
        let log = full.daemon.output();
        assert_eq!(
            (said(&full.daemon, NO_ROOM), said(&full.daemon, ROOM_AGAIN)),
            (1, 1),
            "{log}"
        );
        assert!(log.contains("ring stops while requests are held"), "{log}");
        // Does the same as QEMU's `stop` and `cont`, twice.
        full.set_up();
        full.go_on(0);
        full.wait_until_held();
        assert_eq!(full.stop(), 0);
        full.set_up();
        full.go_on(0);
        full.disk.make_room();
        full.assert_done();
        assert_eq!(full.daemon.count("total", "errors"), 0);
    }
}

#[test]
fn with_room_the_last_try_succeeds() {
    let Some(mut full) = Full::new(&[], false) else {
        return;
    };
    full.disk.make_room();
    full.vm.client.stop_ring(0).expect("stop");
    full.assert_done();
}

#[test]
fn held_requests_outlive_a_stop_with_every_engine() {
    let Some(image) = SmallDisk::mount(1 << 20) else {
        return;
    };
    image.make_image(4096);
    for options in engines(&image.image()) {
        let mut full = Full::new(options, true).expect("mounted");
        let base = full.stop();
        assert_eq!(full.statuses(), [FILL; WRITES as usize], "{options:?}");
        assert_eq!((full.vm.published(0), full.daemon.count("total", "held")), (0, 0));
        // Does the same as QEMU's `stop` and `cont`.
        full.set_up();
        full.go_on(base);
        full.wait_until_held();
        full.disk.make_room();
        full.assert_done();
    }
}

#[test]
fn a_destination_finishes_what_the_source_held() {
    for tracked in [false, true] {
        let Some(mut full) = Full::new(&[], tracked) else {
            return;
        };
        let base = full.stop();
        full.migrate(base);
        full.wait_until_held();
        full.disk.make_room();
        full.assert_done();
        assert_eq!(full.stop(), WRITES);
    }
}

#[test]
fn held_requests_older_than_answers_go_back_too() {
    for (tracked, migrate) in [(false, true), (true, true), (false, false), (true, false)] {
        let Some(mut full) = Full::new(&[], tracked) else {
            return;
        };
        full.put_read(WRITES);
        let log = full.log_dirty_pages();
        // The read must not be taken again, so the base cannot go back.
        let base = full.stop();
        assert_eq!((base, full.vm.published(0)), (WRITES + 1, 1));
        assert_eq!(full.statuses(), [FILL; WRITES as usize]);
        // The successor finds what it needs in guest memory, which migrates with the guest.
        assert!(is_dirty(&log, GUEST + full.vm.rings[0].used as u64));
        if migrate {
            full.migrate(base);
        } else {
            full.set_up();
            full.go_on(base);
        }
        full.wait_until_held();
        full.disk.make_room();
        full.assert_done();
        assert_eq!(full.stop(), WRITES + 1);
        assert!(!full.daemon.output().contains("left no record"));
    }
}

/// Stops the ring with `request` after accepting the protocol features, without `refused`. Returns the ring's base.
fn stop_by(full: &mut Full, request: u32, refused: u64) -> u16 {
    let client = &mut full.vm.client;
    let offered = client.get_u64(msg::GET_PROTOCOL_FEATURES).expect("features");
    let both = GET_VRING_BASE_INFLIGHT | GET_VRING_BASE_SKIP_DRAIN;
    assert_eq!(offered & both, both);
    let accepted = (offered & !refused).to_le_bytes();
    assert_eq!(
        client.ask(msg::SET_PROTOCOL_FEATURES, &accepted, &[]),
        Answer::Ack
    );
    let base = client.stop_ring_by(request, 0).expect("stop");
    u16::try_from(base).expect("an index")
}

#[test]
fn held_requests_move_with_the_inflight_region() {
    for (request, refused) in [
        (msg::GET_VRING_BASE, GET_VRING_BASE_SKIP_DRAIN),
        (msg::GET_VRING_BASE_SKIP_DRAIN, 0),
    ] {
        let Some(mut full) = Full::new(&[], true) else {
            return;
        };
        let base = stop_by(&mut full, request, refused);
        assert_eq!(base, WRITES, "all have been taken");
        let region = full.region.as_ref().expect("it is tracked");
        assert_eq!(region.marked(0).len(), usize::from(WRITES));
        assert_eq!(full.statuses(), [FILL; WRITES as usize]);
        // The region goes to another QEMU, with the guest.
        full.daemon.restart(libc::SIGTERM);
        let stream = full.daemon.connect();
        full.vm.reconnect(stream, 0);
        full.set_up();
        full.go_on(WRITES);
        full.wait_until_held();
        full.disk.make_room();
        full.assert_done();
    }
}

/// QEMU accepts all features, and takes the region along only if it sends GET_VRING_BASE_SKIP_DRAIN.
#[test]
fn held_requests_go_back_where_the_region_stays_behind() {
    let Some(mut full) = Full::new(&[], true) else {
        return;
    };
    assert_eq!(
        stop_by(&mut full, msg::GET_VRING_BASE, 0),
        0,
        "none has been taken"
    );
    full.migrate(0);
    full.wait_until_held();
    full.disk.make_room();
    full.assert_done();
}

#[test]
fn a_stop_without_draining_must_be_negotiated() {
    for refused in [
        GET_VRING_BASE_SKIP_DRAIN,
        GET_VRING_BASE_INFLIGHT,
        GET_VRING_BASE_INFLIGHT | GET_VRING_BASE_SKIP_DRAIN,
    ] {
        let daemon = Daemon::start(&[0; 1 << 16], &[]);
        let mut vm = Vm::start(&daemon, 1);
        let client = &mut vm.client;
        let offered = client.get_u64(msg::GET_PROTOCOL_FEATURES).expect("features");
        let accepted = (offered & !refused).to_le_bytes();
        assert_eq!(
            client.ask(msg::SET_PROTOCOL_FEATURES, &accepted, &[]),
            Answer::Ack
        );
        let stopped = client.stop_ring_by(msg::GET_VRING_BASE_SKIP_DRAIN, 0);
        stopped.expect_err("the connection has ended");
    }
}

#[test]
fn requests_unknown_to_the_successor_are_reported() {
    for tracked in [false, true] {
        let mut daemon = Daemon::start(&[0; 1 << 16], &[]);
        let mut vm = Vm::connect(&daemon, 0);
        if tracked {
            let region = Inflight::get(&mut vm.client, 1, 16);
            assert_eq!(region.set(&mut vm.client), Answer::Ack);
        }
        vm.share_memory();
        let mut ring = Ring::new(0, 16);
        ring.avail_idx = 3;
        vm.memory.store_u16(ring.avail + 2, 3);
        vm.memory.store_u16(ring.used + 2, 1);
        ring.used_idx = 1;
        vm.start_ring(0, ring);
        let line = "ERROR the queue's last backend took requests and left no record of them";
        daemon.wait_for(|d| d.output().contains(line), "report it");
        assert!(daemon.output().contains("requests=2"), "{}", daemon.output());
        // The ring serves new requests.
        vm.read_sector(0, 1);
    }
}

#[test]
fn a_held_request_survives_its_daemon() {
    for (signal, options) in [(libc::SIGKILL, &[][..]), (libc::SIGTERM, &["--aio", "io_uring"])] {
        let Some(mut full) = Full::new(options, true) else {
            return;
        };
        full.daemon.restart(signal);
        let stream = full.daemon.connect();
        full.vm.reconnect(stream, 0);
        full.resume();
        full.wait_until_held();
        assert_eq!(full.statuses(), [FILL; WRITES as usize], "nobody has answered");
        full.disk.make_room();
        full.assert_done();
    }
}

#[test]
fn a_terminated_daemon_does_not_wait_for_space() {
    for tracked in [false, true] {
        let Some(mut full) = Full::new(&[], tracked) else {
            return;
        };
        let exit = full.daemon.terminate();
        assert!(exit.status.success(), "{}", exit.output);
        assert!(exit.took < Duration::from_secs(5), "{:?}", exit.took);
        let expected = if tracked { FILL } else { IOERR };
        assert_eq!(full.statuses(), [expected; WRITES as usize]);
    }
}

#[test]
fn disconnecting_drops_held_requests() {
    let Some(mut full) = Full::new(&[], false) else {
        return;
    };
    full.vm.client.leave();
    full.daemon
        .wait_for(|d| d.output().contains("frontend left"), "see its frontend leave");
    assert_eq!(full.daemon.count("total", "held"), 0);
    full.disk.make_room();
    let stream = full.daemon.connect();
    full.vm.reconnect(stream, 0);
    full.vm.share_memory();
    full.vm.memory.store_u16(0x5000 + 2, 0);
    full.vm.memory.store_u16(0x8000 + 2, 0);
    full.vm.rings.clear();
    full.vm.start_ring(0, Ring::new(0, 16));
    // Held writes must not be executed later, while another process uses the disk.
    assert_eq!(full.vm.read_sector(0, 0), [0; 512]);
}

#[test]
fn held_requests_survive_a_new_memory_table() {
    let Some(mut full) = Full::new(&[], false) else {
        return;
    };
    full.vm.share_memory();
    full.disk.make_room();
    full.assert_done();
}

#[test]
fn a_live_migration_takes_held_requests_along() {
    let Some(mut full) = Full::new(&[], true) else {
        return;
    };
    let log = full.log_dirty_pages();
    let base = full.stop();
    assert_eq!((base, full.statuses()), (0, vec![FILL; WRITES as usize]));
    assert!(
        is_dirty(&log, GUEST + full.vm.rings[0].used as u64),
        "kicks are asked for"
    );
    full.migrate(base);
    full.disk.make_room();
    full.assert_done();
}

fn is_dirty(log: &File, addr: u64) -> bool {
    let (page, mut dirty) = (addr / 4096, [0]);
    std::os::unix::fs::FileExt::read_exact_at(log, &mut dirty, page / 8).expect("read the log");
    dirty[0] & (1 << (page % 8)) != 0
}
