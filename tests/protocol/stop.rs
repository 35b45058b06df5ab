//! Rings stopped with requests in flight: the stop is answered, and no request is lost.

use std::collections::BTreeSet;

use testkit::daemon::Daemon;
use testkit::full::SmallDisk;
use testkit::inflight::Inflight;
use testkit::process::wait_for;
use testkit::raw::{Answer, msg};
use testkit::vm::{
    DATA, EVENT_IDX, FILL, HEADER, Outcome, Ring, STATUS, Vm, header, linked, readable, writable,
};

pub(super) const OUT: u32 = 1;
const GET_ID: u32 = 8;
pub(super) const BYTES: u32 = 8192;

/// Puts a chain of three descriptors into slot `i`, and makes it available.
pub(super) fn put(vm: &mut Vm, i: u16, kind: u32, len: u32) {
    let slot = u64::from(i);
    let (head, status) = (HEADER + 16 * slot, STATUS + slot);
    vm.poke(head, &header(kind, slot * u64::from(BYTES / 512)));
    vm.poke(status, &[FILL]);
    let data = match kind {
        OUT => readable(DATA + slot * u64::from(BYTES), len),
        _ => writable(DATA, len),
    };
    vm.put_descs(
        0,
        3 * i,
        &linked(3 * i, &[readable(head, 16), data, writable(status, 1)]),
    );
    vm.publish(0, 3 * i);
}

/// Waits for the next completion and returns its head.
pub(super) fn take(vm: &mut Vm) -> u32 {
    match vm.outcome(0) {
        Outcome::Used { id, .. } => id,
        Outcome::Broken => panic!("the ring is broken"),
    }
}

/// Starts a ring whose chains in flight are tracked.
pub(super) fn tracked(daemon: &Daemon, size: u16) -> (Vm, Inflight) {
    let mut vm = Vm::connect(daemon, 0);
    let region = Inflight::get(&mut vm.client, 1, size);
    assert_eq!(region.set(&mut vm.client), Answer::Ack);
    vm.share_memory();
    vm.start_ring(0, Ring::new(0, size));
    (vm, region)
}

#[test]
fn stop_survives_enospc_on_the_last_write() {
    for (rule, taken) in [
        ("write:enospc,delay=300ms", 2),
        ("write:enospc,delay=300ms,count=1", 1),
    ] {
        let daemon = Daemon::start(&[0; 1 << 16], &["--inject", rule]);
        let (mut vm, region) = tracked(&daemon, 16);
        put(&mut vm, 0, OUT, BYTES);
        put(&mut vm, 1, OUT, BYTES);
        vm.kick(0);
        wait_for("the writes to be taken", || {
            (region.marked(0).len() >= taken).then_some(())
        });
        vm.client.stop_ring(0).expect("the stop is answered");
        assert_eq!(vm.client.ask(msg::SET_VRING_ENABLE, &[0; 8], &[]), Answer::Ack);
    }
}

#[test]
fn an_idle_queue_stops_beside_a_stuck_one() {
    let daemon = Daemon::start(
        &[0; 1 << 16],
        &["--num-queues", "2", "--inject", "read:delay=100s"],
    );
    let mut vm = Vm::connect(&daemon, 0);
    let region = Inflight::get(&mut vm.client, 2, 16);
    assert_eq!(region.set(&mut vm.client), Answer::Ack);
    vm.share_memory();
    for queue in 0..2 {
        vm.start_ring(queue, Ring::new(queue, 16));
    }
    vm.poke(HEADER, &header(0, 0));
    vm.send(
        1,
        &[readable(HEADER, 16), writable(DATA, 512), writable(STATUS, 1)],
    );
    wait_for("the read to be taken", || {
        (!region.marked(1).is_empty()).then_some(())
    });
    assert_eq!(vm.client.stop_ring(0).expect("the stop is answered"), 0);
    assert_eq!(
        (vm.published(1), region.marked(1).len()),
        (0, 1),
        "the read is stuck"
    );
}

#[test]
fn stop_is_answered_while_writes_hit_enospc() {
    let Some(disk) = SmallDisk::mount_ext4(16 << 20) else {
        return;
    };
    disk.make_image(1 << 20);
    for options in [&[][..], &["--aio", "threads"], &["--direct"]] {
        disk.fill(0);
        let mut daemon = disk.daemon(options);
        let (mut vm, region) = tracked(&daemon, 16);
        for i in 0..5 {
            put(&mut vm, i, OUT, BYTES);
        }
        vm.kick(0);
        for round in 0..30 {
            // The ring stops at different moments between the first write being taken and all writes being held.
            wait_for("some to be taken", || {
                (region.marked(0).len() >= round % 6).then_some(())
            });
            vm.client.stop_ring(0).expect("the stop is answered");
            assert_eq!(region.set(&mut vm.client), Answer::Ack);
            vm.restart_rings();
        }
        disk.make_room();
        let done: BTreeSet<u32> = (0..5).map(|_| take(&mut vm)).collect();
        assert_eq!(done, BTreeSet::from([0, 3, 6, 9, 12]), "{options:?}");
        assert_eq!(vm.peek(STATUS, 5), [0; 5], "{options:?}");
        vm.client.leave();
        assert!(daemon.terminate().status.success());
        disk.make_image(1 << 20);
    }
}

/// More requests than one visit takes.
const MANY: u16 = 80;

/// Publishes many requests, with one kick.
fn load(vm: &mut Vm) {
    for i in 0..MANY {
        put(vm, i, GET_ID, 20);
    }
    vm.kick(0);
}

fn assert_all_answered(vm: &mut Vm) {
    let done: BTreeSet<u32> = (0..MANY).map(|_| take(vm)).collect();
    assert!(done.into_iter().eq((0..MANY).map(|i| 3 * u32::from(i))));
}

#[test]
fn requests_available_before_stop_need_no_kick() {
    for features in [0, EVENT_IDX] {
        let daemon = Daemon::start(&[0; 1 << 16], &[]);
        let mut vm = Vm::start_with(&daemon, 1, 256, features);
        for _ in 0..30 {
            load(&mut vm);
            let base = vm.client.stop_ring(0).expect("stop");
            let mut ring = vm.rings.pop().expect("it is there");
            let avail_idx = ring.avail_idx;
            ring.avail_idx = u16::try_from(base).expect("16 bits");
            // Nobody kicks: QEMU passes the same eventfd again, and its count was already consumed.
            let _ = ring.kick.read();
            vm.start_ring(0, ring);
            vm.rings[0].avail_idx = avail_idx;
            assert_all_answered(&mut vm);
        }
    }
}

#[test]
fn an_untracked_upgrade_under_load_loses_no_request() {
    for features in [0, EVENT_IDX] {
        let mut daemon = Daemon::start(&[0; 1 << 16], &[]);
        let mut vm = Vm::start_with(&daemon, 1, 256, features);
        for _ in 0..10 {
            load(&mut vm);
            daemon.restart(libc::SIGTERM);
            vm.reconnect(daemon.connect(), features);
            vm.share_memory();
            let _ = vm.rings[0].kick.read();
            vm.restart_rings();
            assert_all_answered(&mut vm);
        }
    }
}

/// QEMU reads the kick eventfd after a stop, and a legacy driver's device is started again by what is left there.
#[test]
fn a_stop_clears_kicks_that_were_served() {
    let daemon = Daemon::start(&[0; 1 << 16], &["--poll-max-ns", "0"]);
    let mut vm = Vm::start(&daemon, 1);
    for round in 0..3 {
        for sector in 0..3 {
            vm.read_sector(0, sector);
        }
        let base = vm.client.stop_ring(0).expect("stop");
        let mut ring = vm.rings.pop().expect("it is there");
        assert!(ring.kick.read().is_err(), "round {round}: a kick is left");
        ring.avail_idx = u16::try_from(base).expect("16 bits");
        vm.start_ring(0, ring);
    }
}

#[test]
fn a_stop_leaves_a_kick_for_untaken_requests() {
    let daemon = Daemon::start(&[0; 1 << 16], &[]);
    let mut vm = Vm::start(&daemon, 1);
    vm.read_sector(0, 0);
    let disable = |vm: &mut Vm| {
        let answer = vm.client.vring_state(msg::SET_VRING_ENABLE, 0, 0);
        assert_eq!(answer, Answer::Ack);
    };
    disable(&mut vm);
    put(&mut vm, 1, 0, BYTES);
    vm.kick(0);
    // These run on the ring's thread, the second one after the kick.
    disable(&mut vm);
    disable(&mut vm);
    assert_eq!(vm.client.stop_ring(0).expect("stop"), 1);
    assert!(
        vm.rings[0].kick.read().is_ok(),
        "no kick is left for the next backend"
    );
}
