//! What becomes of requests that are held when something else happens: a stop, an end, a restart, a migration.

use std::os::fd::AsRawFd;
use std::time::Duration;

use crate::common::daemon::Daemon;
use crate::common::full::SmallDisk;
use crate::common::inflight::Inflight;
use crate::common::memory::memfd;
use crate::common::process::wait_for;
use crate::common::raw::{Answer, LOG_ALL, PROTOCOL_FEATURES, VERSION_1, msg};
use crate::common::vm::{
    DATA, FILL, GUEST, HEADER, MEMORY, Outcome, Ring, STATUS, Vm, header, linked, readable, writable,
};
use crate::{NO_ROOM, ROOM_AGAIN, engines, said};

const OUT: u32 = 1;
const BYTES: u32 = 8192;
const WRITES: u16 = 4;
const OK: u8 = 0;
const IOERR: u8 = 1;

/// A VM whose writes are all held.
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
        wait_for("the writes to be held", || {
            (self.daemon.count("total", "held") >= WRITES.into()).then_some(())
        });
    }

    fn statuses(&self) -> Vec<u8> {
        self.vm.peek(STATUS, WRITES.into())
    }

    /// Starts the ring again, as the same frontend does after a stop or a restart.
    fn resume(&mut self) {
        self.set_up();
        self.vm.restart_rings();
    }

    /// All writes are answered, with OK, and done.
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
            // Cleared right after the used index that was just seen.
            wait_for("the marks to go", || region.marked(0).is_empty().then_some(()));
        }
    }
}

#[test]
fn a_ring_that_stops_gives_held_requests_one_more_try() {
    let Some(mut full) = Full::new(&[], false) else {
        return;
    };
    assert_eq!(full.vm.client.stop_ring(0).expect("stop"), u32::from(WRITES));
    assert_eq!(full.statuses(), [IOERR; WRITES as usize]);
    assert_eq!(full.vm.published(0), WRITES);
    let log = full.daemon.output();
    assert_eq!(
        (said(&full.daemon, NO_ROOM), said(&full.daemon, ROOM_AGAIN)),
        (1, 1),
        "{log}"
    );
    assert!(log.contains("ring stops while requests are held"), "{log}");
    assert_eq!(full.daemon.count("total", "held"), 0);
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
fn a_tracked_ring_that_stops_leaves_held_requests_in_flight_until_it_runs_again() {
    let Some(image) = SmallDisk::mount(1 << 20) else {
        return;
    };
    image.make_image(4096);
    for options in engines(&image.image()) {
        let mut full = Full::new(options, true).expect("mounted");
        assert_eq!(full.vm.client.stop_ring(0).expect("stop"), u32::from(WRITES));
        assert_eq!(full.statuses(), [FILL; WRITES as usize], "{options:?}");
        assert_eq!((full.vm.published(0), full.daemon.count("total", "held")), (0, 0));
        // As QEMU's `stop` and `cont`.
        full.resume();
        full.wait_until_held();
        full.disk.make_room();
        full.assert_done();
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
fn a_daemon_that_is_told_to_end_does_not_wait_for_room() {
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
fn a_frontend_that_leaves_takes_its_held_requests_along() {
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
    // What was held is not done behind the back of whoever uses the disk now.
    assert_eq!(full.vm.read_sector(0, 0), [0; 512]);
}

#[test]
fn a_changed_memory_table_does_not_concern_held_requests() {
    let Some(mut full) = Full::new(&[], false) else {
        return;
    };
    full.vm.share_memory();
    full.disk.make_room();
    full.assert_done();
}

#[test]
fn a_migration_answers_what_is_held_for_its_destination_would_not_know() {
    let Some(mut full) = Full::new(&[], true) else {
        return;
    };
    let log = memfd(4096);
    let bits = (GUEST + MEMORY as u64) / 4096 / 8;
    assert!(full.vm.client.set_log(bits, 0, log.as_raw_fd()).is_some());
    let features = (VERSION_1 | PROTOCOL_FEATURES | LOG_ALL).to_le_bytes();
    assert_eq!(full.vm.client.ask(msg::SET_FEATURES, &features, &[]), Answer::Ack);
    full.vm.client.stop_ring(0).expect("stop");
    assert_eq!(full.statuses(), [IOERR; WRITES as usize]);
    let region = full.region.as_ref().expect("it is tracked");
    assert!(region.marked(0).is_empty());
    // The page with the status bytes.
    let mut dirty = [0];
    let page = (STATUS / 4096) as usize;
    std::os::unix::fs::FileExt::read_exact_at(&log, &mut dirty, page as u64 / 8).expect("read the log");
    assert!(
        dirty[0] & (1 << (page % 8)) != 0,
        "the answers are not in the log"
    );
}
