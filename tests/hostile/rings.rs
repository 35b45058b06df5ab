//! Rings in every state: impossible sizes, addresses and indices, and stops at any time.

use std::os::fd::AsRawFd;
use std::time::Duration;

use testkit::daemon::Daemon;
use testkit::memory::wait_readable;
use testkit::raw::{Answer, Region, msg};
use testkit::target::{SECTORS, image, serve};
use testkit::vm::{
    DATA, GUEST, HEADER, MEMORY, Outcome, REGION, Ring, SECTOR, STATUS, TABLE, USER, Vm, header, indirect,
    linked, readable, writable,
};

pub(super) fn start(options: &[&str]) -> Daemon {
    serve(&image(), &[&["--num-queues", "2"], options].concat())
}

/// Checks that the daemon runs and serves a connection.
pub(super) fn assert_unharmed(daemon: &mut Daemon) {
    assert!(daemon.is_alive());
    let mut vm = Vm::start(daemon, 2);
    for queue in 0..2 {
        assert_eq!(vm.read_sector(queue, 9), image()[9 * SECTOR..10 * SECTOR]);
    }
    drop(vm);
    assert!(daemon.image() == image(), "the image changed");
}

/// Prepares reads of one sector each: the `i`th at descriptor `3 * i`, its data at `DATA + 512 * i`.
fn put_reads(vm: &Vm, queue: usize, count: u16) {
    for i in 0..u64::from(count) {
        let at = HEADER + 16 * i;
        vm.poke(at, &header(0, i));
        let chain = [
            readable(at, 16),
            writable(DATA + 512 * i, 512),
            writable(STATUS + i, 1),
        ];
        let head = u16::try_from(3 * i).expect("small");
        vm.put_descs(queue, head, &linked(head, &chain));
    }
}

#[test]
fn impossible_sizes_are_refused() {
    let mut daemon = start(&[]);
    for size in [0, 3, 6, 1000, 2048, 32768, 65536, 65537, u32::MAX] {
        let mut vm = Vm::connect(&daemon, 0);
        assert!(
            vm.client.vring_state(msg::SET_VRING_NUM, 0, size).is_refusal(),
            "size {size}"
        );
    }
    assert_unharmed(&mut daemon);
}

#[test]
fn a_queue_size_above_the_option_is_refused() {
    let daemon = start(&["--queue-size", "64"]);
    let mut vm = Vm::connect(&daemon, 0);
    assert_eq!(vm.client.vring_state(msg::SET_VRING_NUM, 0, 64), Answer::Ack);
    assert!(vm.client.vring_state(msg::SET_VRING_NUM, 0, 128).is_refusal());
}

#[test]
fn rings_at_impossible_addresses_never_run() {
    let mut daemon = start(&[]);
    let end = USER + MEMORY as u64;
    let (desc, used, avail) = (USER, USER + 0x8000, USER + 0x5000);
    for (name, desc, used, avail) in [
        ("descriptors past the memory", end, used, avail),
        ("descriptors over the end of the memory", end - 128, used, avail),
        ("a used ring over the end of the memory", desc, end - 64, avail),
        ("an avail ring over the end of the memory", desc, used, end - 16),
        (
            "guest addresses instead of the frontend's",
            GUEST,
            GUEST + 0x8000,
            GUEST + 0x5000,
        ),
        ("nothing at all", 0, 0, 0),
        ("the end of the address space", u64::MAX - 15, used, avail),
        ("a used ring that wraps around", desc, u64::MAX - 3, avail),
        ("descriptors that are not aligned", desc + 8, used, avail),
        ("a used ring that is not aligned", desc, used + 2, avail),
        ("an avail ring that is not aligned", desc, used, avail + 1),
    ] {
        let mut vm = Vm::connect(&daemon, 0);
        vm.share_memory();
        vm.rings.push(Ring::new(0, 16));
        put_reads(&vm, 0, 1);
        vm.publish(0, 0);
        let kick = vm.rings[0].kick.as_raw_fd();
        let refused = vm.client.vring_state(msg::SET_VRING_NUM, 0, 16).is_refusal()
            || vm.client.vring_addr(0, desc, used, avail).is_refusal()
            || vm
                .client
                .vring_fd(msg::SET_VRING_KICK, 0, Some(kick))
                .is_refusal()
            || vm.client.vring_state(msg::SET_VRING_ENABLE, 0, 1).is_refusal();
        if !refused {
            // If the ring is not refused, it must not run either.
            vm.kick(0);
            let _ = vm.client.stop_ring(0);
        }
        assert_eq!(vm.memory.load_u16(0x8002), 0, "{name}: the used ring was written");
        assert!(daemon.is_alive(), "{name}");
    }
    assert_unharmed(&mut daemon);
}

/// The parts of a ring as `Ring::new(0, 16)` places them: descriptors, used ring, available ring.
const PARTS: [u64; 3] = [USER, USER + 0x8000, USER + 0x5000];

/// Returns a VM with a request and a kick on its ring. Only memory and addresses are not set up yet.
fn kicked_ring(daemon: &Daemon) -> Vm {
    let mut vm = Vm::connect(daemon, 0);
    vm.rings.push(Ring::new(0, 16));
    put_reads(&vm, 0, 1);
    vm.publish(0, 0);
    vm.kick(0);
    let call = vm.rings[0].call.as_raw_fd();
    assert_eq!(vm.client.vring_state(msg::SET_VRING_NUM, 0, 16), Answer::Ack);
    assert_eq!(
        vm.client.vring_fd(msg::SET_VRING_CALL, 0, Some(call)),
        Answer::Ack
    );
    vm
}

fn set_kick(vm: &mut Vm) -> Answer {
    let kick = vm.rings[0].kick.as_raw_fd();
    vm.client.vring_fd(msg::SET_VRING_KICK, 0, Some(kick))
}

/// Starts another ring, then runs `start`, and expects the request that was made available first.
fn assert_others_run_and_then(vm: &mut Vm, start: impl FnOnce(&mut Vm) -> Answer) {
    vm.start_ring(1, Ring::new(1, 16));
    vm.read_sector_with(1, 3);
    assert_eq!(vm.client.vring_state(msg::SET_VRING_ENABLE, 0, 1), Answer::Ack);
    assert_eq!(vm.client.vring_state(msg::SET_VRING_NUM, 0, 16), Answer::Ack);
    assert_eq!(vm.client.vring_state(msg::SET_VRING_BASE, 0, 0), Answer::Ack);
    assert_eq!(vm.memory.load_u16(0x8002), 0, "it runs already");
    assert_eq!(start(vm), Answer::Ack);
    assert_eq!(vm.outcome(0), Outcome::Used { id: 0, len: 513 });
}

#[test]
fn a_failed_start_keeps_its_kick() {
    let mut daemon = start(&[]);
    let [desc, used, avail] = PARTS;
    let mut vm = kicked_ring(&daemon);
    vm.share_memory();
    assert_eq!(vm.client.vring_addr(0, GUEST, used, avail), Answer::Ack);
    assert_eq!(set_kick(&mut vm), Answer::Nak);
    assert_eq!(
        vm.client.vring_addr(0, GUEST + 4096, used, avail),
        Answer::Nak,
        "wrong again"
    );
    assert_others_run_and_then(&mut vm, |vm| vm.client.vring_addr(0, desc, used, avail));
    drop(vm);
    assert_unharmed(&mut daemon);
}

#[test]
fn a_ring_starts_once_its_memory_arrives() {
    let mut daemon = start(&[]);
    let [desc, _, avail] = PARTS;
    let mut vm = kicked_ring(&daemon);
    // The region lacks the last page, which holds the used ring.
    let used = USER + MEMORY as u64 - 4096;
    let rest = Region {
        size: MEMORY as u64 - 4096,
        ..REGION
    };
    let last = Region {
        guest_addr: GUEST + rest.size,
        size: 4096,
        user_addr: used,
        mmap_offset: rest.size,
    };
    vm.memory.write(MEMORY - 4096, &[0; 256]);
    let fd = vm.memory.fd();
    assert_eq!(vm.client.mem_region(msg::ADD_MEM_REG, rest, &[fd]), Answer::Ack);
    assert_eq!(vm.client.vring_addr(0, desc, used, avail), Answer::Ack);
    assert_eq!(set_kick(&mut vm), Answer::Nak);
    vm.rings[0].used = MEMORY - 4096;
    assert_others_run_and_then(&mut vm, |vm| vm.client.mem_region(msg::ADD_MEM_REG, last, &[fd]));
    drop(vm);
    assert_unharmed(&mut daemon);
}

#[test]
fn an_impossible_index_jump_breaks_the_ring() {
    let mut daemon = start(&[]);
    for jump in [17, 1000, 0x8000, u16::MAX] {
        let mut vm = Vm::start(&daemon, 2);
        vm.read_sector(0, 0);
        let ring = &vm.rings[0];
        vm.memory
            .store_u16(ring.avail + 2, ring.avail_idx.wrapping_add(jump));
        vm.kick(0);
        assert_eq!(vm.outcome(0), Outcome::Broken, "a jump of {jump}");
        vm.read_sector(1, 0);
    }
    assert_unharmed(&mut daemon);
}

#[test]
fn indices_wrap_around() {
    let daemon = start(&[]);
    let mut vm = Vm::connect(&daemon, 0);
    vm.share_memory();
    let mut ring = Ring::new(0, 16);
    (ring.avail_idx, ring.used_idx) = (0xfff8, 0xfff8);
    vm.memory.store_u16(ring.avail + 2, 0xfff8);
    vm.memory.store_u16(ring.used + 2, 0xfff8);
    vm.start_ring(0, ring);
    for i in 0..100_u64 {
        let sector = i % SECTORS as u64;
        assert_eq!(
            vm.read_sector(0, sector)[0],
            sector.to_le_bytes()[0],
            "request {i}"
        );
    }
    assert_eq!(
        vm.client.stop_ring(0).expect("GET_VRING_BASE"),
        u32::from(0xfff8_u16.wrapping_add(100))
    );
}

#[test]
fn every_queue_size_serves_a_full_ring() {
    let daemon = start(&[]);
    for size in [4, 8, 64, 256, 1024] {
        let mut vm = Vm::start_with(&daemon, 1, size, 0);
        let count = (size / 3).min(60);
        for _ in 0..4 {
            put_reads(&vm, 0, count);
            (0..count).for_each(|i| vm.publish(0, 3 * i));
            vm.kick(0);
            let mut ids: Vec<u32> = (0..count).map(|_| used_id(&mut vm)).collect();
            ids.sort_unstable();
            assert_eq!(
                ids,
                (0..u32::from(count)).map(|i| 3 * i).collect::<Vec<_>>(),
                "size {size}"
            );
        }
    }
}

#[test]
fn a_table_may_be_longer_than_its_queue() {
    let daemon = start(&[]);
    for size in [1, 16, 64] {
        let mut vm = Vm::start_with(&daemon, 1, size, 0);
        vm.poke(HEADER, &header(0, 8));
        for entries in [3, 128, 1024] {
            // Each data descriptor has one byte, except for the last: together they are sector 8.
            let mut table = vec![readable(HEADER, 16)];
            table.extend((0..entries - 3).map(|i| writable(DATA + i, u32::from(i < 500))));
            let done = (entries - 3).min(500);
            table.push(writable(DATA + done, 512 - u32::try_from(done).expect("small")));
            table.push(writable(STATUS, 1));
            vm.put_table(TABLE, &linked(0, &table));
            let table = indirect(TABLE, u32::try_from(16 * entries).expect("small"));
            assert_eq!(vm.request(0, &[table]), Some((0, 513)), "{size} {entries}");
            assert_eq!(vm.peek(DATA, 512), [8; 512]);
        }
    }
}

/// Returns the id of the next completion, which must be a read of one sector.
fn used_id(vm: &mut Vm) -> u32 {
    match vm.outcome(0) {
        Outcome::Used { id, len: 513 } => id,
        other => panic!("{other:?}"),
    }
}

/// Expects that the first request completes once the ring is enabled, and not before.
fn assert_waits_until_enabled(vm: &mut Vm) {
    // The daemon answers this message after a kick was written. Give the IOThread time for a wrong reaction.
    vm.client.get_u64(msg::GET_FEATURES).expect("an answer");
    assert!(
        !wait_readable(&vm.rings[0].call, Duration::from_millis(50)),
        "a disabled ring completed something"
    );
    assert_eq!(vm.published(0), 0, "a disabled ring was processed");
    assert_eq!(vm.client.vring_state(msg::SET_VRING_ENABLE, 0, 1), Answer::Ack);
    assert_eq!(used_id(vm), 0);
}

#[test]
fn an_early_kick_is_kept_until_enabled() {
    let daemon = start(&[]);
    let mut vm = Vm::connect(&daemon, 0);
    vm.share_memory();
    let ring = Ring::new(0, 16);
    vm.set_up_ring(0, &ring);
    vm.rings.push(ring);
    put_reads(&vm, 0, 1);
    vm.publish(0, 0);
    vm.kick(0);
    assert_waits_until_enabled(&mut vm);
}

#[test]
fn requests_from_before_start_need_no_kick() {
    let daemon = start(&[]);
    let mut vm = Vm::connect(&daemon, 0);
    vm.share_memory();
    // The previous backend has consumed the kick, as after a migration.
    vm.rings.push(Ring::new(0, 16));
    put_reads(&vm, 0, 1);
    vm.publish(0, 0);
    let mut ring = vm.rings.pop().expect("it was there");
    let avail_idx = std::mem::take(&mut ring.avail_idx);
    vm.set_up_ring(0, &ring);
    vm.rings.push(ring);
    vm.rings[0].avail_idx = avail_idx;
    assert_waits_until_enabled(&mut vm);
}

#[test]
fn reset_owner_disables_rings_until_enabled() {
    let daemon = start(&[]);
    let mut vm = Vm::start(&daemon, 2);
    vm.read_sector(0, 3);
    assert_eq!(vm.client.ask(msg::RESET_OWNER, &[], &[]), Answer::Ack);
    vm.poke(HEADER, &header(0, 0));
    let chain = [readable(HEADER, 16), writable(DATA, 512), writable(STATUS, 1)];
    for queue in 0..2 {
        vm.send(queue, &chain);
    }
    vm.client.get_u64(msg::GET_FEATURES).expect("an answer");
    let before = [0, 1].map(|queue| vm.published(queue));
    assert_eq!(before, [1, 0], "a disabled ring was processed");
    for queue in 0..2 {
        assert_eq!(
            vm.client.vring_state(msg::SET_VRING_ENABLE, queue, 1),
            Answer::Ack
        );
        let outcome = vm.outcome(usize::try_from(queue).expect("small"));
        assert_eq!(outcome, Outcome::Used { id: 0, len: 513 });
    }
    assert_eq!(vm.client.stop_ring(0).expect("stop"), 2);
}

#[test]
fn a_disabled_ring_waits_until_enabled() {
    let daemon = start(&[]);
    let mut vm = Vm::start(&daemon, 1);
    for _ in 0..20 {
        vm.read_sector(0, 3);
        assert_eq!(vm.client.vring_state(msg::SET_VRING_ENABLE, 0, 0), Answer::Ack);
        let before = vm.published(0);
        vm.poke(HEADER, &header(0, 0));
        vm.send(
            0,
            &[readable(HEADER, 16), writable(DATA, 512), writable(STATUS, 1)],
        );
        assert!(vm.client.get_u64(msg::GET_FEATURES).is_ok());
        assert_eq!(vm.published(0), before, "a disabled ring was processed");
        assert_eq!(vm.client.vring_state(msg::SET_VRING_ENABLE, 0, 1), Answer::Ack);
        assert_eq!(used_id(&mut vm), 0);
    }
}

#[test]
fn get_vring_base_drains_and_nothing_follows() {
    // O_DIRECT keeps requests in flight when the stop comes.
    let daemon = start(&["--direct"]);
    let mut vm = Vm::start_with(&daemon, 1, 256, 0);
    for round in 1..=50_u16 {
        put_reads(&vm, 0, 64);
        (0..64).for_each(|i| vm.publish(0, 3 * i));
        vm.kick(0);
        let base = vm.client.stop_ring(0).expect("GET_VRING_BASE");
        let published = vm.published(0);
        assert_eq!(
            base,
            u32::from(published),
            "round {round}: popped requests are not completed"
        );
        while vm.rings[0].call.read().is_ok() {}
        assert!(
            !wait_readable(&vm.rings[0].call, Duration::from_millis(2)),
            "a call after the stop"
        );
        assert_eq!(
            vm.published(0),
            published,
            "round {round}: a completion after the stop"
        );
        // Start the ring where it stopped: every request completes, once.
        let mut ring = vm.rings.pop().expect("it was there");
        let goal = ring.avail_idx;
        ring.avail_idx = published;
        vm.start_ring(0, ring);
        vm.rings[0].avail_idx = goal;
        vm.kick(0);
        while vm.rings[0].used_idx != goal {
            used_id(&mut vm);
        }
    }
}

#[test]
fn overlapping_rings_and_data_are_harmless() {
    let mut daemon = start(&[]);
    let mut vm = Vm::connect(&daemon, 0);
    vm.share_memory();
    for index in 0..2 {
        let mut ring = Ring::new(0, 16);
        // Both queues are in the same place, with the used ring over the descriptors.
        ring.used = ring.desc;
        vm.set_up_ring(index, &ring);
        vm.rings.push(ring);
    }
    put_reads(&vm, 0, 4);
    (0..4).for_each(|i| vm.publish(0, 3 * i));
    for queue in [0_u32, 1] {
        let _ = vm.client.vring_state(msg::SET_VRING_ENABLE, queue, 1);
    }
    vm.kick(0);
    vm.kick(1);
    for queue in [0, 1] {
        let _ = vm.client.stop_ring(queue);
    }
    drop(vm);
    assert_unharmed(&mut daemon);
}

#[test]
fn a_read_into_its_ring_is_harmless() {
    let mut daemon = start(&[]);
    let mut vm = Vm::start(&daemon, 2);
    vm.poke(HEADER, &header(0, 0));
    // Reads 32 KiB of the disk over descriptors, available ring and used ring of queue 0.
    vm.send(
        0,
        &[readable(HEADER, 16), writable(GUEST, 0x8000), writable(STATUS, 1)],
    );
    vm.kick(0);
    vm.read_sector(1, 1);
    let _ = vm.client.stop_ring(0);
    drop(vm);
    assert_unharmed(&mut daemon);
}
