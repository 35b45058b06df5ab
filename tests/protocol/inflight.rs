//! If the frontend keeps the in-flight region, a killed daemon loses no request and answers none twice.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

use testkit::daemon::Daemon;
use testkit::inflight::{Header, Inflight};
use testkit::memory::{PATIENCE, wait_readable};
use testkit::random::Random;
use testkit::raw::{Answer, msg};
use testkit::target::{assert_serves, image, start};
use testkit::vm::{DATA, EVENT_IDX, HEADER, Ring, STATUS, Vm, header, linked, readable, writable};
use testkit::writes::{BYTES, WRITES, assert_all_answered_once, put_flush, put_write};

const GET_ID: u32 = 8;
const SIZE: u16 = 16;

/// Puts the `i`th GET_ID into two descriptors from head `3 * i` on. The IOThread answers it without a worker.
fn put_get_id(vm: &Vm, queue: usize, i: u16) -> u16 {
    vm.poke(HEADER, &header(GET_ID, 0));
    let chain = [
        readable(HEADER, 16),
        writable(DATA, 20),
        writable(STATUS + u64::from(i), 1),
    ];
    vm.put_descs(queue, 3 * i, &linked(3 * i, &chain));
    3 * i
}

/// Connects with a region that `leave` puts into the state left by a predecessor. The rings are not set up.
fn connect(daemon: &Daemon, leave: impl FnOnce(&Inflight)) -> (Vm, Inflight) {
    let mut vm = Vm::connect(daemon, 0);
    let region = Inflight::get(&mut vm.client, 2, SIZE);
    leave(&region);
    vm.share_memory();
    (vm, region)
}

#[test]
fn the_region_always_lists_requests_in_flight() {
    let (daemon, _) = start();
    let (mut vm, region) = connect(&daemon, |_| ());
    assert_eq!(region.set(&mut vm.client), Answer::Ack);
    vm.start_ring(0, Ring::new(0, SIZE));
    for sector in 0..20 {
        vm.read_sector(0, sector);
    }
    assert_eq!(vm.client.stop_ring(0).expect("stop"), 20);
    let expected = Header {
        features: 0,
        version: 1,
        desc_num: SIZE,
        last_batch_head: 0,
        used_idx: 20,
    };
    assert_eq!((region.header(0), region.marked(0)), (expected, vec![]));
    assert_eq!(region.header(1).version, 0, "the other queue never ran");
}

#[test]
fn a_predecessors_requests_come_first_without_a_kick() {
    let (daemon, _) = start();
    // Five were made available; the predecessor took four and answered the second.
    let (mut vm, region) = connect(&daemon, |r| r.leave(0, 1, &[(0, 7), (6, 9), (9, 8)]));
    let mut ring = Ring::new(0, SIZE);
    ring.used_idx = 1;
    vm.memory.store_u16(ring.used + 2, 1);
    vm.rings.push(ring);
    for head in [0, 1, 3, 2, 4].map(|i| put_get_id(&vm, 0, i)) {
        vm.publish(0, head);
    }
    assert_eq!(region.set(&mut vm.client), Answer::Ack);
    let mut ring = vm.rings.pop().expect("just pushed");
    // QEMU would continue at this index, which is too early.
    let avail_idx = std::mem::replace(&mut ring.avail_idx, 1);
    vm.start_ring(0, ring);
    vm.rings[0].avail_idx = avail_idx;
    let answered: Vec<_> = (0..4).map(|_| vm.outcome(0)).collect();
    let ids = answered.iter().map(|outcome| match outcome {
        testkit::vm::Outcome::Used { id, .. } => *id,
        testkit::vm::Outcome::Broken => u32::MAX,
    });
    assert_eq!(ids.collect::<Vec<_>>(), [0, 9, 6, 12]);
    assert!(wait_readable(&vm.rings[0].call, PATIENCE));
    assert_eq!(vm.client.stop_ring(0).expect("stop"), 5);
    assert_eq!((region.header(0).used_idx, region.marked(0)), (5, vec![]));
}

#[test]
fn a_predecessors_possibly_missed_notification_is_sent() {
    let (daemon, _) = start();
    // The predecessor answered one request. It died before or after it cleared the mark and signalled the call eventfd.
    let (mut vm, region) = connect(&daemon, |r| r.leave(0, 0, &[(0, 0)]));
    let mut ring = Ring::new(0, SIZE);
    vm.memory.store_u16(ring.used + 2, 1);
    vm.memory.store_u16(ring.avail + 2, 1);
    ring.avail_idx = 1;
    assert_eq!(region.set(&mut vm.client), Answer::Ack);
    vm.start_ring(0, ring);
    assert!(
        wait_readable(&vm.rings[0].call, PATIENCE),
        "the driver still waits"
    );
    assert_eq!(vm.rings[0].call.read().expect("a call"), 1);
    assert_eq!(vm.client.stop_ring(0).expect("stop"), 1);
    assert_eq!((region.header(0).used_idx, region.marked(0)), (1, vec![]));
}

#[test]
fn a_corrupt_region_keeps_its_rings_stopped() {
    let (daemon, _) = start();
    let (mut vm, region) = connect(&daemon, |r| r.leave(1, 5, &[(2, 1), (4, 1)]));
    assert_eq!(region.set(&mut vm.client), Answer::Ack, "the ring tells more");
    let mut ring = Ring::new(1, SIZE);
    vm.memory.store_u16(ring.used + 2, 5);
    ring.avail_idx = 7;
    assert!(ring_is_refused(&mut vm, 1, &ring));
    assert!(
        daemon.output().contains("impossible counter 1"),
        "{}",
        daemon.output()
    );

    drop(vm);

    // The daemon sees at once that this region is corrupt.
    let (mut vm, region) = connect(&daemon, |r| r.write(8, &9u16.to_ne_bytes()));
    assert_eq!(region.set(&mut vm.client), Answer::Nak);
    assert!(daemon.output().contains("version 9"), "{}", daemon.output());
    let refused = Ring::new(0, SIZE);
    assert!(
        ring_is_refused(&mut vm, 0, &refused),
        "untracked, it loses requests"
    );
    drop(vm);
    assert_serves(&daemon);
}

/// Returns whether the message that would start the ring is refused.
fn ring_is_refused(vm: &mut Vm, index: u32, ring: &Ring) -> bool {
    use std::os::fd::AsRawFd;
    use testkit::vm::USER;
    let user = |offset: usize| USER + offset as u64;
    let client = &mut vm.client;
    client.vring_state(msg::SET_VRING_NUM, index, ring.size.into());
    client.vring_state(msg::SET_VRING_BASE, index, ring.avail_idx.into());
    client.vring_addr(index, user(ring.desc), user(ring.used), user(ring.avail));
    let kick = client.vring_fd(msg::SET_VRING_KICK, index.into(), Some(ring.kick.as_raw_fd()));
    kick.is_refusal()
}

#[test]
fn regions_that_do_not_fit_are_refused() {
    let (daemon, _) = start();
    let (mut vm, fair) = connect(&daemon, |_| ());
    let variant = |change: fn(&mut Inflight)| {
        let file = fair.file.try_clone().expect("duplicate");
        let mut region = Inflight { file, ..fair };
        change(&mut region);
        region
    };
    for (what, region) in [
        ("beyond the file", variant(|r| r.size += 4096)),
        ("wraps around", variant(|r| r.offset = u64::MAX - 4095)),
        (
            "misaligned",
            variant(|r| (r.size, r.offset, r.queues) = (320, 64, 1)),
        ),
        ("too small", variant(|r| r.size = 639)),
        ("no queue size", variant(|r| r.queue_size = 15)),
        ("too many queues", variant(|r| r.queues = u16::MAX)),
    ] {
        assert_eq!(region.set(&mut vm.client), Answer::Nak, "{what}");
    }
    assert_eq!(fair.set(&mut vm.client), Answer::Ack);
    vm.start_ring(0, Ring::new(0, SIZE));
    assert_eq!(
        fair.set(&mut vm.client),
        Answer::Nak,
        "a ring runs, and would lose its track"
    );
    vm.read_sector(0, 1);
}

/// Kills the daemon under load several times. Checks each time that every write is done, and answered once.
fn survives(signal: libc::c_int, features: u64, seed: u64) {
    survives_with(&["--aio", "threads"], 64, signal, features, seed);
}

/// Does the same with an engine, and with a region that the frontend requests for rings of `queue_size`. The rings have
/// 64 entries.
fn survives_with(engine: &[&str], queue_size: u16, signal: libc::c_int, features: u64, seed: u64) {
    let options = [&["--num-queues", "2", "--thread-pool-max", "4"], engine].concat();
    let mut daemon = Daemon::start(&vec![0; 64 * BYTES], &options);
    let mut random = Random::new(seed);
    let mut vm = Vm::connect(&daemon, features);
    let region = Inflight::get(&mut vm.client, 2, queue_size);
    vm.rings = (0..2).map(|index| Ring::new(index, 64)).collect();
    for round in 0..30 {
        vm.reconnect(daemon.connect(), features);
        assert_eq!(region.set(&mut vm.client), Answer::Ack);
        vm.share_memory();
        vm.restart_rings();
        let mut expected = Vec::new();
        for queue in 0..2 {
            for i in 0..WRITES {
                let data = random.bytes(BYTES);
                let head = put_write(&vm, queue, i, &data);
                vm.publish(queue, head);
                expected.push((queue, i, data));
                if i == 0 {
                    // A flush is slow, so that later requests are answered first.
                    let flush = put_flush(&vm, queue);
                    vm.publish(queue, flush);
                }
            }
            vm.kick(queue);
        }
        thread::sleep(Duration::from_micros(random.next() % 500));
        daemon.restart(signal);
        vm.reconnect(daemon.connect(), features);
        assert_eq!(region.set(&mut vm.client), Answer::Ack, "{}", daemon.output());
        vm.share_memory();
        vm.restart_rings();
        for queue in 0..2 {
            assert_all_answered_once(&mut vm, queue, round);
        }
        assert_written(&vm, &daemon, &expected);
    }
}

fn assert_written(vm: &Vm, daemon: &Daemon, expected: &[(usize, u16, Vec<u8>)]) {
    let image = File::open(daemon.image_path()).expect("open the image");
    for (queue, i, data) in expected {
        let slot = u64::from(*i) + 32 * *queue as u64;
        assert_eq!(vm.peek(STATUS + slot, 1), [0], "status of {queue}/{i}");
        let mut written = vec![0; BYTES];
        image
            .read_exact_at(&mut written, slot * BYTES as u64)
            .expect("read the image");
        assert!(written == *data, "write {queue}/{i} is lost");
    }
}

#[test]
fn a_killed_daemon_answers_each_request_once() {
    survives(libc::SIGKILL, 0, 1);
}

#[test]
fn a_daemon_killed_with_event_idx_answers_once() {
    survives(libc::SIGKILL, EVENT_IDX, 2);
}

#[test]
fn a_daemon_killed_during_kernel_io_answers_once() {
    // The daemon uses io_uring where the kernel has it.
    survives_with(&["--direct"], 64, libc::SIGKILL, EVENT_IDX, 4);
}

#[test]
fn a_terminated_daemon_answers_each_request_once() {
    survives(libc::SIGTERM, EVENT_IDX, 3);
}

#[test]
fn rings_larger_than_the_frontend_says_are_recovered() {
    survives_with(&["--aio", "threads"], 16, libc::SIGKILL, EVENT_IDX, 5);
}

#[test]
fn rings_too_large_for_their_region_run_untracked() {
    let (daemon, _) = start();
    let (mut vm, region) = connect(&daemon, |_| ());
    let region = Inflight {
        size: 2 * 320,
        ..region
    };
    assert_eq!(region.set(&mut vm.client), Answer::Ack);
    vm.start_ring(0, Ring::new(0, 1024));
    vm.read_sector(0, 7);
    assert_eq!(region.header(0).version, 0);
    assert!(
        daemon.output().contains("no room for a ring"),
        "{}",
        daemon.output()
    );
}

#[test]
fn a_new_regions_description_has_no_stray_bytes() {
    let (daemon, _) = start();
    let mut vm = Vm::connect(&daemon, 0);
    let (queues, queue_size) = (1u16, 16u16);
    let (description, file) = Inflight::ask(&mut vm.client, queues, queue_size);
    let expected = [
        &file.metadata().expect("stat").len().to_le_bytes()[..],
        &0u64.to_le_bytes(),
        &queues.to_le_bytes(),
        &queue_size.to_le_bytes(),
        &[0; 4],
    ];
    assert_eq!(description, expected.concat());
}

#[test]
fn regions_for_too_many_queues_are_refused() {
    let (daemon, _) = start();
    let mut vm = Vm::connect(&daemon, 0);
    let payload = [[0; 16].as_slice(), &[3, 0, 16, 0, 0, 0, 0, 0]].concat();
    vm.client
        .send(msg::GET_INFLIGHT_FD, 0, &payload, &[])
        .expect("send");
    assert!(vm.client.receive_with_file(msg::GET_INFLIGHT_FD).is_err());
    drop(vm);
    assert!(daemon.output().contains("num-queues"), "{}", daemon.output());
    assert_serves(&daemon);
    assert_eq!(image(), daemon.image());
}

#[test]
fn a_daemon_hangs_up_after_its_last_answer() {
    let options = ["--num-queues", "2"];
    let mut daemon = Daemon::start(&vec![0; 64 * BYTES], &options);
    for _ in 0..10 {
        let mut vm = Vm::start_with(&daemon, 2, 64, 0);
        for queue in 0..2 {
            let flush = put_flush(&vm, queue);
            for i in 0..WRITES {
                let write = put_write(&vm, queue, i, &[1; BYTES]);
                vm.publish(queue, write);
            }
            vm.publish(queue, flush);
            vm.kick(queue);
        }
        daemon.signal(libc::SIGTERM);
        vm.client.wait_for_end();
        let answered = [0, 1].map(|queue| vm.published(queue));
        daemon.restart(libc::SIGTERM);
        assert_eq!([0, 1].map(|queue| vm.published(queue)), answered);
    }
}
