//! Memory tables: impossible regions, regions removed while in use, and too many regions.

use std::os::fd::AsRawFd;
use std::time::Duration;

use testkit::memory::{SharedMemory, wait_readable};
use testkit::raw::{Answer, Region, mem_table, msg};
use testkit::target::{assert_unharmed, client, start};
use testkit::vm::{
    DATA, EVENT_IDX, FILL, GUEST, HEADER, MEMORY, Outcome, REGION, STATUS, USER, Vm, header, linked,
    readable, writable,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

fn region(guest_addr: u64, size: u64, user_addr: u64, mmap_offset: u64) -> Region {
    Region {
        guest_addr,
        size,
        user_addr,
        mmap_offset,
    }
}

/// Regions that cannot be mapped.
fn bad_regions() -> Vec<(&'static str, Vec<Region>)> {
    let size = MEMORY as u64;
    vec![
        ("of no size", vec![region(GUEST, 0, USER, 0)]),
        ("as large as can be", vec![region(GUEST, u64::MAX, USER, 0)]),
        (
            "wrapping in the guest",
            vec![region(u64::MAX - 4095, size, USER, 0)],
        ),
        (
            "wrapping in the frontend",
            vec![region(GUEST, size, u64::MAX - 4095, 0)],
        ),
        (
            "with an offset that overflows",
            vec![region(GUEST, size, USER, u64::MAX - 4095)],
        ),
        (
            "with an offset and size that wrap",
            vec![region(GUEST, u64::MAX - 4095, USER, 8192)],
        ),
        (
            "overlapping",
            vec![REGION, region(GUEST + size - 4096, size, USER + 2 * size, 0)],
        ),
        ("twice the same", vec![REGION, REGION]),
    ]
}

#[test]
fn impossible_memory_tables_are_refused() {
    let (daemon, baseline) = start();
    let memory = SharedMemory::new(MEMORY);
    for (name, regions) in bad_regions() {
        let fds = vec![memory.fd(); regions.len()];
        let answer = client(&daemon).ask(msg::SET_MEM_TABLE, &mem_table(&regions), &fds);
        assert!(answer.is_refusal(), "a region {name}: {answer:?}");
    }
    let mut count = mem_table(&[REGION]);
    for regions in [0, 2, 9, u32::MAX] {
        count[..4].copy_from_slice(&regions.to_le_bytes());
        let answer = client(&daemon).ask(msg::SET_MEM_TABLE, &count, &[memory.fd()]);
        assert!(answer.is_refusal(), "{regions} regions, one sent: {answer:?}");
    }
    drop(memory);
    assert_unharmed(daemon, &baseline);
}

#[test]
fn impossible_regions_are_not_added() {
    let (daemon, baseline) = start();
    let memory = SharedMemory::new(MEMORY);
    for (name, regions) in bad_regions() {
        let mut client = client(&daemon);
        let answers: Vec<Answer> = regions
            .iter()
            .map(|region| client.mem_region(msg::ADD_MEM_REG, *region, &[memory.fd()]))
            .collect();
        assert!(
            answers.iter().any(Answer::is_refusal),
            "a region {name}: {answers:?}"
        );
    }
    drop(memory);
    assert_unharmed(daemon, &baseline);
}

#[test]
fn memory_that_cannot_be_mapped_is_refused() {
    let (daemon, baseline) = start();
    let event = EventFd::new(EFD_NONBLOCK).expect("make an eventfd");
    let read_only = std::fs::File::open("/proc/self/maps").expect("open a file");
    for (name, fd) in [
        ("an eventfd", event.as_raw_fd()),
        ("a file of /proc", read_only.as_raw_fd()),
    ] {
        let answer = client(&daemon).ask(msg::SET_MEM_TABLE, &mem_table(&[REGION]), &[fd]);
        assert!(answer.is_refusal(), "{name}: {answer:?}");
    }
    assert_unharmed(daemon, &baseline);
}

#[test]
fn an_unknown_region_cannot_be_removed() {
    let (daemon, baseline) = start();
    let memory = SharedMemory::new(MEMORY);
    let mut one = client(&daemon);
    assert_eq!(
        one.mem_region(msg::ADD_MEM_REG, REGION, &[memory.fd()]),
        Answer::Ack
    );
    let other = region(GUEST, MEMORY as u64, USER + 4096, 0);
    assert!(one.mem_region(msg::REM_MEM_REG, other, &[]).is_refusal());
    drop(one);
    let mut two = client(&daemon);
    assert!(two.mem_region(msg::REM_MEM_REG, REGION, &[]).is_refusal());
    drop(two);
    drop(memory);
    assert_unharmed(daemon, &baseline);
}

#[test]
fn regions_can_be_added_and_removed_repeatedly() {
    let (daemon, baseline) = start();
    let mut vm = Vm::start(&daemon, 1);
    let extra = region(1 << 40, MEMORY as u64, 1 << 40, 0);
    let memory = SharedMemory::new(MEMORY);
    for _ in 0..100 {
        assert_eq!(
            vm.client.mem_region(msg::ADD_MEM_REG, extra, &[memory.fd()]),
            Answer::Ack
        );
        vm.read_sector(0, 1);
        // QEMU also sends a descriptor with the removal.
        assert_eq!(
            vm.client.mem_region(msg::REM_MEM_REG, extra, &[memory.fd()]),
            Answer::Ack
        );
        vm.read_sector(0, 2);
    }
    drop((vm, memory));
    assert_unharmed(daemon, &baseline);
}

#[test]
fn the_number_of_regions_is_limited() {
    let (daemon, baseline) = start();
    let mut client = client(&daemon);
    let slots = client.get_u64(msg::GET_MAX_MEM_SLOTS).expect("GET_MAX_MEM_SLOTS");
    assert!((8..=1024).contains(&slots), "{slots} slots");
    let memory = SharedMemory::new(4096);
    for i in 0..slots {
        let at = region(i << 20, 4096, i << 20, 0);
        assert_eq!(
            client.mem_region(msg::ADD_MEM_REG, at, &[memory.fd()]),
            Answer::Ack,
            "region {i} of {slots}"
        );
    }
    let one_more = region(slots << 20, 4096, slots << 20, 0);
    assert!(
        client
            .mem_region(msg::ADD_MEM_REG, one_more, &[memory.fd()])
            .is_refusal()
    );
    drop((client, memory));
    assert_unharmed(daemon, &baseline);
}

/// Regions that are removed stay mapped while requests in flight use them. The kernel limits the mappings of a process.
#[test]
fn stuck_requests_cannot_keep_endless_memory() {
    const REGIONS: u64 = 500;
    const MAPPED: u64 = 2 * 509;
    let mut options = testkit::target::options();
    options.extend(["--inject", "write:enospc,sector=20"]);
    let (mut daemon, baseline) = testkit::target::start_with(&options);
    let mut vm = Vm::start(&daemon, 1);
    let file = SharedMemory::new(4096);
    let extra = |i: u64| region((1 << 40) + (i << 20), 4096, (1 << 40) + (i << 20), 0);
    let mut added = 0;
    let refused = (0..4).find_map(|round: u64| {
        for i in 0..REGIONS {
            match vm.client.mem_region(msg::ADD_MEM_REG, extra(i), &[file.fd()]) {
                Answer::Ack => added += 1,
                answer => return Some(answer),
            }
        }
        let slot = u16::try_from(round).expect("small");
        vm.poke(HEADER, &header(1, 20));
        vm.put_descs(
            0,
            3 * slot,
            &linked(
                3 * slot,
                &[readable(HEADER, 16), readable(DATA, 512), writable(STATUS, 1)],
            ),
        );
        vm.publish(0, 3 * slot);
        vm.kick(0);
        daemon.wait_for(|daemon| daemon.output().contains("held"), "hold a write");
        // The IOThread has seen the kick by then.
        daemon.check_neighbour();
        for i in 0..REGIONS {
            assert_eq!(vm.client.mem_region(msg::REM_MEM_REG, extra(i), &[]), Answer::Ack);
        }
        None
    });
    assert_eq!(refused, Some(Answer::Nak), "{added} regions were added");
    assert!(added >= MAPPED - 1, "{added} regions were added");
    assert!(daemon.output().contains("1018 memory regions are mapped already"));
    daemon.check_neighbour();
    drop((vm, file));
    daemon.wait_for_holdings(&baseline);
}

#[test]
fn a_ring_pauses_while_its_region_is_away() {
    let (daemon, baseline) = start();
    for event_idx in [0, EVENT_IDX] {
        let mut vm = Vm::start_with(&daemon, 2, 16, event_idx);
        let chain = [readable(HEADER, 16), writable(DATA, 512), writable(STATUS, 1)];
        for sector in 1..5_u8 {
            vm.read_sector(0, u64::from(sector));
            assert_eq!(vm.client.mem_region(msg::REM_MEM_REG, REGION, &[]), Answer::Ack);
            vm.poke(HEADER, &header(0, u64::from(sector) + 8));
            vm.poke(STATUS, &[FILL]);
            vm.send(0, &chain);
            // The ring sees the kick and does nothing.
            vm.serve_kicks(0);
            assert_eq!(vm.take_used(0), None);
            let fds = [vm.memory.fd()];
            assert_eq!(vm.client.mem_region(msg::ADD_MEM_REG, REGION, &fds), Answer::Ack);
            assert_eq!(vm.outcome(0), Outcome::Used { id: 0, len: 513 });
            assert_eq!(vm.peek(DATA, 512), [sector + 8; 512]);
            assert_eq!(vm.read_sector(1, 3), [3; 512]);
        }
        // A paused ring can be stopped.
        vm.client.mem_region(msg::REM_MEM_REG, REGION, &[]);
        assert_eq!(vm.client.stop_ring(0).expect("stop"), 8);
        assert!((0..2).all(|queue| !wait_readable(&vm.rings[queue].err, Duration::ZERO)));
    }
    assert_unharmed(daemon, &baseline);
}

#[test]
fn memory_may_change_under_requests_in_flight() {
    let (daemon, baseline) = start();
    for _ in 0..20 {
        let mut vm = Vm::start_with(&daemon, 1, 256, 0);
        let chain = [readable(HEADER, 16), writable(DATA, 0x4000), writable(STATUS, 1)];
        vm.poke(HEADER, &header(0, 0));
        vm.put_descs(0, 0, &linked(0, &chain));
        (0..64).for_each(|_| vm.publish(0, 0));
        vm.kick(0);
        // The whole table is removed while the rings run.
        vm.client.mem_region(msg::REM_MEM_REG, REGION, &[]);
        drop(vm);
    }
    assert_unharmed(daemon, &baseline);
}
