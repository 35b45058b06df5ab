//! Floods of messages and requests, and memory that changes while it is in use.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::arena::Arena;
use testkit::memory::SharedMemory;
use testkit::process::SetAtEnd;
use testkit::random::Random;
use testkit::raw::{Answer, Client, Region, msg};
use testkit::vm::{
    DATA, EVENT_IDX, HEADER, MEMORY, Outcome, REGION, STATUS, Vm, header, indirect, linked, readable,
    writable,
};

/// Runs `attack` on a thread of its own while `meanwhile` runs.
fn while_running(attack: impl Fn() + Sync, meanwhile: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = SetAtEnd(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                attack();
            }
        });
        meanwhile();
    });
}

#[test]
fn connections_by_the_thousand() {
    let mut arena = Arena::new();
    arena.case("2,000 connections at once", |daemon| {
        for _ in 0..2000 {
            drop(daemon.connect());
        }
    });
    arena.case("100 connections that wait for their turn, and leave", |daemon| {
        let waiting: Vec<_> = (0..100).map(|_| daemon.connect()).collect();
        drop(waiting);
    });
    arena.case("1,000 connections that ask and leave", |daemon| {
        for _ in 0..1000 {
            let mut client = Client::new(daemon.connect());
            client.send(msg::GET_FEATURES, 0, &[], &[]).expect("ask");
        }
    });
}

#[test]
fn messages_without_a_look_at_the_answers() {
    let mut arena = Arena::new();
    for request in [msg::GET_FEATURES, msg::GET_QUEUE_NUM, msg::GET_INFLIGHT_FD] {
        arena.client(&format!("request {request}"), |client| {
            client.set_write_timeout(Duration::from_millis(100));
            let payload = match request {
                msg::GET_INFLIGHT_FD => [vec![0; 16], vec![2, 0, 16, 0, 0, 0, 0, 0]].concat(),
                _ => vec![],
            };
            while client.send(request, 0, &payload, &[]).is_ok() {}
        });
    }
}

#[test]
fn storms_of_kicks() {
    let mut arena = Arena::new();
    for features in [0, EVENT_IDX] {
        arena.case(
            &format!("kicks without requests, features {features:#x}"),
            |daemon| {
                let mut vm = Vm::start_with(daemon, 2, 16, features);
                let kick = vm.rings[0].kick.try_clone().expect("clone it");
                while_running(
                    || drop(kick.write(1)),
                    || (0..300).for_each(|i| assert_eq!(vm.read_sector(1, i % 64).len(), 512)),
                );
                vm.read_sector(0, 1);
            },
        );
    }
}

#[test]
fn memory_that_changes_while_it_is_read() {
    let mut arena = Arena::new();
    // The headers ask for a read or a write of sectors 40..44, or for a mixture of both.
    for seed in 0..12 {
        let name = format!("descriptors and headers that change, seed {seed}");
        arena.case_that_writes(&name, 40..44, |daemon| flip(daemon, seed));
    }
}

/// Switches between descriptors and headers of requests for sectors 40..44, field by field and in any order, while the
/// device reads them. Any mixture of them is either sound or impossible.
fn flip(daemon: &testkit::daemon::Daemon, seed: u64) {
    let mut vm = Vm::start_with(daemon, 2, 16, 0);
    let chains = [
        linked(
            0,
            &[readable(HEADER, 16), writable(DATA, 2048), writable(STATUS, 1)],
        ),
        linked(
            0,
            &[readable(HEADER, 16), readable(DATA, 2048), writable(STATUS, 1)],
        ),
        linked(
            0,
            &[
                readable(HEADER, 16).next(9),
                writable(DATA, 512),
                indirect(DATA, 32),
            ],
        ),
        linked(
            0,
            &[readable(HEADER, 16), readable(u64::MAX, 512), writable(STATUS, 0)],
        ),
    ];
    vm.poke(HEADER, &header(0, 40));
    vm.put_descs(0, 0, &chains[0]);
    let memory = vm.memory.clone();
    let (desc, avail) = (vm.rings[0].desc, vm.rings[0].avail);
    let attack = || {
        let mut random = Random::new(seed);
        for _ in 0..200 {
            let chain = &chains[random.below(chains.len())];
            let at = random.below(3);
            memory.write(desc + 16 * at, &chain[at].bytes());
            let kind = [0_u32, 1, 4, 11, 13, 99][random.below(6)];
            memory.write(0x8_0000, &kind.to_le_bytes());
            if seed.is_multiple_of(3) && random.below(8) == 0 {
                let idx = random.next().to_le_bytes();
                memory.store_u16(avail + 2, u16::from_le_bytes([idx[0], idx[1]]));
            }
        }
    };
    while_running(attack, || {
        let end = Instant::now() + Duration::from_millis(60);
        while Instant::now() < end {
            vm.publish(0, 0);
            vm.kick(0);
            vm.read_sector_with(1, 3);
        }
    });
}

#[test]
fn regions_that_go_while_requests_run() {
    let mut arena = Arena::new();
    let extra = Region {
        guest_addr: 1 << 32,
        user_addr: 1 << 44,
        ..REGION
    };
    arena.case("one of two regions", |daemon| {
        let mut vm = Vm::start_with(daemon, 2, 256, 0);
        let memory = SharedMemory::new(MEMORY);
        let add = |vm: &mut Vm| vm.client.mem_region(msg::ADD_MEM_REG, extra, &[memory.fd()]);
        for round in 0..100 {
            assert_eq!(add(&mut vm), Answer::Ack, "round {round}");
            vm.poke(HEADER, &header(0, 0));
            let chain = [
                readable(HEADER, 16),
                writable(1 << 32, 0x4000),
                writable(STATUS, 1),
            ];
            vm.put_descs(0, 0, &linked(0, &chain));
            vm.publish(0, 0);
            vm.kick(0);
            let answer = vm.client.mem_region(msg::REM_MEM_REG, extra, &[]);
            assert_eq!(answer, Answer::Ack, "round {round}");
            // The request waits if its memory was removed before the device took the request.
            vm.read_sector(1, 3);
            assert_eq!(add(&mut vm), Answer::Ack, "round {round}");
            assert_eq!(vm.outcome(0), Outcome::Used { id: 0, len: 0x4001 });
            let answer = vm.client.mem_region(msg::REM_MEM_REG, extra, &[]);
            assert_eq!(answer, Answer::Ack, "round {round}");
        }
    });
    arena.case("the whole table, again and again", |daemon| {
        let mut vm = Vm::start_with(daemon, 2, 256, 0);
        for sector in 0..100 {
            vm.poke(HEADER, &header(0, 0));
            vm.publish(0, 0);
            vm.kick(0);
            vm.share_memory();
            vm.read_sector(1, sector % 64);
        }
    });
}

#[test]
fn eventfds_that_are_replaced_all_the_time() {
    let mut arena = Arena::new();
    arena.case("kick, call and error of a running ring", |daemon| {
        let mut vm = Vm::start(daemon, 2);
        for round in 0..200 {
            let event = || vmm_sys_util::eventfd::EventFd::new(libc::EFD_NONBLOCK).expect("make an eventfd");
            let ring = &mut vm.rings[0];
            (ring.kick, ring.call, ring.err) = (event(), event(), event());
            let fds = [ring.kick.as_raw_fd(), ring.call.as_raw_fd(), ring.err.as_raw_fd()];
            let requests = [msg::SET_VRING_KICK, msg::SET_VRING_CALL, msg::SET_VRING_ERR];
            for (request, fd) in requests.into_iter().zip(fds) {
                let fd = Some(fd).filter(|_| round % 5 > 0 || request != msg::SET_VRING_CALL);
                assert_eq!(vm.client.vring_fd(request, 0, fd), Answer::Ack);
            }
            vm.read_sector(0, round % 64);
        }
    });
}
