//! Memory regions that are removed and given back while rings in other regions run.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use testkit::daemon::Daemon;
use testkit::inflight::Inflight;
use testkit::memory::{PATIENCE, SharedMemory, wait_readable};
use testkit::raw::{Answer, Client, Region, mem_table, msg};
use testkit::target::{assert_unharmed, start};
use testkit::vm::{
    DATA, Desc, EVENT_IDX, FILL, GUEST, HEADER, Outcome, REGION, Ring, STATUS, TABLE, Vm, header, indirect,
    linked, readable, writable,
};

const SIZE: u16 = 16;
/// Sizes of consecutive regions for rings, headers, status bytes, indirect tables, and data.
const SIZES: [u64; 5] = [0x8_0000, 0x1000, 0x1000, 0xe000, 0x7_0000];
const RINGS: usize = 0;
const HEADERS: usize = 1;
const STATUSES: usize = 2;
const TABLES: usize = 3;
const BUFFERS: usize = 4;

fn region(index: usize) -> Region {
    let at = SIZES[..index].iter().sum::<u64>();
    Region {
        guest_addr: REGION.guest_addr + at,
        size: SIZES[index],
        user_addr: REGION.user_addr + at,
        mmap_offset: at,
    }
}

/// Connects a VM whose memory is split into these regions, without rings.
fn connect(daemon: &Daemon, features: u64) -> Vm {
    let mut vm = Vm::connect(daemon, features);
    let regions: Vec<Region> = (0..SIZES.len()).map(region).collect();
    let fds = vec![vm.memory.fd(); regions.len()];
    let answer = vm.client.ask(msg::SET_MEM_TABLE, &mem_table(&regions), &fds);
    assert_eq!(answer, Answer::Ack);
    vm
}

fn start_vm(daemon: &Daemon, queues: usize, features: u64) -> Vm {
    let mut vm = connect(daemon, features);
    (0..queues).for_each(|index| vm.start_ring(index, Ring::new(index, SIZE)));
    vm
}

fn remove(client: &mut Client, region: Region) {
    assert_eq!(client.mem_region(msg::REM_MEM_REG, region, &[]), Answer::Ack);
}

fn give_back(client: &mut Client, memory: &SharedMemory, region: Region) {
    let answer = client.mem_region(msg::ADD_MEM_REG, region, &[memory.fd()]);
    assert_eq!(answer, Answer::Ack);
}

/// Writes a read of sector `i` to head `3 * i`, and returns the head.
fn put_read(vm: &Vm, queue: usize, i: u16) -> u16 {
    let (at, data) = (u64::from(i), DATA + 0x1000 * u64::from(i));
    vm.poke(HEADER + 16 * at, &header(0, at));
    vm.poke(STATUS + at, &[FILL]);
    let chain = [
        readable(HEADER + 16 * at, 16),
        writable(data, 512),
        writable(STATUS + at, 1),
    ];
    vm.put_descs(queue, 3 * i, &linked(3 * i, &chain));
    3 * i
}

/// Waits until these reads, and no others, are answered with the right data.
fn assert_answered(vm: &mut Vm, reads: Range<u8>) {
    let mut expected: BTreeSet<u32> = reads.clone().map(|i| 3 * u32::from(i)).collect();
    while !expected.is_empty() {
        match vm.outcome(0) {
            Outcome::Used { id, len: 513 } if expected.remove(&id) => {}
            other => panic!("{other:?} instead of {expected:?}"),
        }
    }
    for (i, at) in reads.map(|i| (i, u64::from(i))) {
        assert_eq!(vm.peek(STATUS + at, 1), [0], "the status of read {i}");
        assert_eq!(vm.peek(DATA + 0x1000 * at, 512), [i; 512], "read {i}");
    }
}

/// Waits until the daemon has seen the kick, and checks that nothing else happens.
fn assert_waits(vm: &mut Vm, queue: usize) {
    vm.serve_kicks(queue);
    assert_eq!(vm.take_used(queue), None);
    assert!(!wait_readable(&vm.rings[queue].err, Duration::ZERO));
}

#[test]
fn a_request_waits_for_each_removed_part() {
    let (daemon, baseline) = start();
    let direct = [readable(HEADER, 16), writable(DATA, 512), writable(STATUS, 1)];
    let table = [indirect(TABLE, 48)];
    for features in [0, EVENT_IDX] {
        let mut vm = start_vm(&daemon, 2, features);
        for (sector, part) in (1..).zip([HEADERS, STATUSES, TABLES, BUFFERS]) {
            let chain: &[Desc] = if part == TABLES { &table } else { &direct };
            vm.put_table(TABLE, &linked(0, &direct));
            vm.poke(HEADER, &header(0, u64::from(sector)));
            vm.poke(STATUS, &[FILL]);
            remove(&mut vm.client, region(part));
            vm.send(0, chain);
            assert_waits(&mut vm, 0);
            give_back(&mut vm.client, &vm.memory, region(part));
            assert_eq!(vm.outcome(0), Outcome::Used { id: 0, len: 513 }, "part {part}");
            assert_eq!(vm.peek(DATA, 512), [sector; 512]);
        }
    }
    assert_unharmed(daemon, &baseline);
}

#[test]
fn a_table_without_a_region_makes_requests_wait() {
    let (daemon, baseline) = start();
    let mut vm = start_vm(&daemon, 1, 0);
    let head = put_read(&vm, 0, 1);
    let set_table = |vm: &mut Vm, parts: &[usize]| {
        let regions: Vec<Region> = parts.iter().map(|&part| region(part)).collect();
        let fds = vec![vm.memory.fd(); regions.len()];
        let answer = vm.client.ask(msg::SET_MEM_TABLE, &mem_table(&regions), &fds);
        assert_eq!(answer, Answer::Ack);
    };
    set_table(&mut vm, &[RINGS, TABLES]);
    vm.publish(0, head);
    vm.kick(0);
    for parts in [
        &[RINGS][..],
        &[RINGS, HEADERS, BUFFERS],
        &[RINGS, STATUSES, HEADERS],
    ] {
        assert_waits(&mut vm, 0);
        set_table(&mut vm, parts);
    }
    assert_waits(&mut vm, 0);
    set_table(&mut vm, &[RINGS, STATUSES, HEADERS, BUFFERS]);
    assert_answered(&mut vm, 1..2);
    drop(vm);
    assert_unharmed(daemon, &baseline);
}

#[test]
fn a_smaller_region_serves_what_it_holds() {
    let (daemon, baseline) = start();
    let mut vm = start_vm(&daemon, 1, 0);
    remove(&mut vm.client, region(BUFFERS));
    for i in 0..5 {
        let head = put_read(&vm, 0, i);
        vm.publish(0, head);
    }
    vm.kick(0);
    assert_waits(&mut vm, 0);
    let (mut first, mut rest) = (region(BUFFERS), region(BUFFERS));
    first.size = 0x2000;
    rest.size -= 0x2000;
    rest.guest_addr += 0x2000;
    rest.user_addr += 0x2000;
    rest.mmap_offset += 0x2000;
    for (given, reads) in [(first, 0..2), (rest, 2..5)] {
        give_back(&mut vm.client, &vm.memory, given);
        assert_answered(&mut vm, reads);
        assert_waits(&mut vm, 0);
    }
    drop(vm);
    assert_unharmed(daemon, &baseline);
}

#[test]
fn addresses_never_mapped_fail_beside_removed_ones() {
    let (daemon, baseline) = start();
    let mut vm = start_vm(&daemon, 1, 0);
    remove(&mut vm.client, region(TABLES));
    remove(&mut vm.client, region(BUFFERS));
    let past = GUEST + REGION.size;
    vm.poke(HEADER, &header(0, 0));
    let data = [readable(HEADER, 16), writable(past, 512), writable(STATUS, 1)];
    assert_eq!(vm.request(0, &data), Some((1, 1)));
    let status = [readable(HEADER, 16), writable(past, 1)];
    assert_eq!(vm.request(0, &status), None);
    drop(vm);
    assert_unharmed(daemon, &baseline);
}

/// Makes reads 0 to 3 available, of which the last two wait for data. Stops the ring, and returns its base.
fn stop_while_waiting(vm: &mut Vm) -> u32 {
    let mut first = region(BUFFERS);
    first.size = 0x2000;
    remove(&mut vm.client, region(BUFFERS));
    give_back(&mut vm.client, &vm.memory, first);
    for i in 0..4 {
        let head = put_read(vm, 0, i);
        vm.publish(0, head);
    }
    vm.kick(0);
    assert_answered(vm, 0..2);
    assert_waits(vm, 0);
    let base = vm.client.stop_ring(0).expect("stop");
    remove(&mut vm.client, first);
    give_back(&mut vm.client, &vm.memory, region(BUFFERS));
    base
}

#[test]
fn a_stop_leaves_waiting_requests_to_the_successor() {
    let (daemon, baseline) = start();
    for tracked in [false, true] {
        let mut vm = connect(&daemon, 0);
        let inflight = tracked.then(|| Inflight::get(&mut vm.client, 1, SIZE));
        if let Some(inflight) = &inflight {
            assert_eq!(inflight.set(&mut vm.client), Answer::Ack);
        }
        vm.start_ring(0, Ring::new(0, SIZE));
        assert_eq!(stop_while_waiting(&mut vm), 2);
        let marked = inflight.map(|inflight| inflight.marked(0));
        assert!(marked.is_none_or(|marked| marked.is_empty()));
        let mut ring = vm.rings.pop().expect("a ring");
        let avail_idx = std::mem::replace(&mut ring.avail_idx, 2);
        vm.start_ring(0, ring);
        vm.rings[0].avail_idx = avail_idx;
        assert_answered(&mut vm, 2..4);
    }
    assert_unharmed(daemon, &baseline);
}

#[test]
fn a_predecessors_requests_wait_as_well() {
    let (daemon, baseline) = start();
    let mut vm = connect(&daemon, 0);
    let inflight = Inflight::get(&mut vm.client, 1, SIZE);
    // The predecessor took three requests and answered the first.
    inflight.leave(0, 1, &[(3, 1), (6, 2)]);
    assert_eq!(inflight.set(&mut vm.client), Answer::Ack);
    let mut ring = Ring::new(0, SIZE);
    ring.used_idx = 1;
    vm.memory.store_u16(ring.used + 2, 1);
    vm.rings.push(ring);
    for i in 0..4 {
        let head = put_read(&vm, 0, i);
        vm.publish(0, head);
    }
    for round in 0..3 {
        remove(&mut vm.client, region(BUFFERS));
        let mut ring = vm.rings.pop().expect("a ring");
        // With the region, the daemon needs no base.
        let avail_idx = std::mem::replace(&mut ring.avail_idx, 0);
        vm.start_ring(0, ring);
        vm.rings[0].avail_idx = avail_idx;
        vm.kick(0);
        assert_waits(&mut vm, 0);
        assert_eq!(inflight.marked(0), [3, 6], "round {round}");
        if round < 2 {
            assert_eq!(vm.client.stop_ring(0).expect("stop"), 1);
            assert_eq!(inflight.marked(0), [3, 6], "round {round}");
        }
        give_back(&mut vm.client, &vm.memory, region(BUFFERS));
    }
    assert_answered(&mut vm, 1..4);
    assert_eq!(vm.client.stop_ring(0).expect("stop"), 4);
    assert_eq!(inflight.marked(0), [0; 0]);
    drop(vm);
    assert_unharmed(daemon, &baseline);
}

#[test]
fn a_frontend_may_leave_while_requests_wait() {
    let (daemon, baseline) = start();
    let mut vm = start_vm(&daemon, 2, 0);
    remove(&mut vm.client, region(HEADERS));
    let head = put_read(&vm, 0, 0);
    vm.publish(0, head);
    vm.kick(0);
    assert_waits(&mut vm, 0);
    drop(vm);
    assert_unharmed(daemon, &baseline);
}

/// Removes regions and gives them back many times, while the queue always has five reads.
fn hammer(parts: &[usize]) {
    let (daemon, baseline) = start();
    for features in [0, EVENT_IDX] {
        let mut vm = start_vm(&daemon, 1, features);
        let heads: Vec<u16> = (0..5).map(|i| put_read(&vm, 0, i)).collect();
        heads.into_iter().for_each(|head| vm.publish(0, head));
        vm.kick(0);
        let over = AtomicBool::new(false);
        let (client, memory, ring) = (&mut vm.client, &vm.memory, &mut vm.rings[0]);
        let answered = thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..300 {
                    parts.iter().for_each(|&part| remove(client, region(part)));
                    parts
                        .iter()
                        .for_each(|&part| give_back(client, memory, region(part)));
                }
                over.store(true, Ordering::Release);
            });
            read_until(&over, memory, ring)
        });
        assert!(answered > 5, "{answered} reads");
    }
    assert_unharmed(daemon, &baseline);
}

/// Repeats each read as soon as it is answered, until `over`. Returns the number of answers.
fn read_until(over: &AtomicBool, memory: &SharedMemory, ring: &mut Ring) -> usize {
    let (mut answered, mut in_flight) = (0, 5);
    let mut deadline = Instant::now() + PATIENCE;
    while in_flight > 0 {
        assert!(!wait_readable(&ring.err, Duration::ZERO), "the ring is broken");
        assert!(Instant::now() < deadline, "{in_flight} reads are not answered");
        let index = ring.published(memory);
        ring.set_used_event(memory, index);
        let Some((id, len)) = ring.take_used(memory) else {
            thread::yield_now();
            continue;
        };
        let (i, offset) = (id / 3, |addr: u64| {
            usize::try_from(addr - GUEST).expect("a small number")
        });
        let status = offset(STATUS + u64::from(i));
        assert_eq!((len, memory.read(status, 1)), (513, vec![0]), "read {i}");
        let data = memory.read(offset(DATA + 0x1000 * u64::from(i)), 512);
        assert_eq!(data, vec![u8::try_from(i).expect("a small number"); 512]);
        (answered, in_flight) = (answered + 1, in_flight - 1);
        deadline = Instant::now() + PATIENCE;
        if !over.load(Ordering::Acquire) {
            memory.write(status, &[FILL]);
            ring.offer(memory, u16::try_from(id).expect("a small number"));
            ring.kick.write(1).expect("kick");
            in_flight += 1;
        }
    }
    answered
}

#[test]
fn reads_go_on_while_data_comes_and_goes() {
    hammer(&[BUFFERS]);
}

#[test]
fn reads_go_on_while_headers_come_and_go() {
    hammer(&[HEADERS, STATUSES]);
}

#[test]
fn reads_go_on_while_everything_comes_and_goes() {
    hammer(&[RINGS, HEADERS, STATUSES, BUFFERS]);
}
