//! Streams of random messages and random rings, which are the same in each run.

use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::arena::Arena;
use testkit::daemon::Daemon;
use testkit::memory::SharedMemory;
use testkit::random::Random;
use testkit::raw::mem_table;
use testkit::vm::{GUEST, HEADER, MEMORY, REGION, USER, Vm, header};

/// Returns a random number, often one at the edge of a valid range.
fn number(random: &mut Random) -> u64 {
    let any = random.next();
    let edges = [
        0,
        1,
        2,
        15,
        16,
        255,
        256,
        4096,
        65535,
        MEMORY as u64,
        GUEST,
        USER,
        USER + 0x5000,
        USER + 0x8000,
        1 << 32,
        1 << 63,
        u64::MAX - 4095,
        u64::MAX,
    ];
    match random.below(4) {
        0 => any,
        _ => edges[random.below(edges.len())],
    }
}

fn payload(request: u32, random: &mut Random) -> Vec<u8> {
    let words = |random: &mut Random, count: usize| -> Vec<u8> {
        (0..count).flat_map(|_| number(random).to_le_bytes()).collect()
    };
    match (request, random.below(8)) {
        (_, 0) => {
            let len = random.below(100);
            words(random, 13)[..len].to_vec()
        }
        (5, 1..=4) => mem_table(&[REGION]),
        (1 | 3 | 4 | 15 | 17 | 34 | 36, _) => vec![],
        (5 | 9 | 37 | 38, _) => words(random, 5),
        (6 | 8 | 10 | 11 | 18, _) => {
            let (index, value) = (random.below(3), number(random));
            [&[index.to_le_bytes()[0], 0, 0, 0], &value.to_le_bytes()[..4]].concat()
        }
        (24 | 25, _) => [vec![0; 4], vec![60, 0, 0, 0], words(random, 8)].concat(),
        (31 | 32, _) => words(random, 3),
        _ => words(random, 1),
    }
}

fn messages(daemon: &Daemon, seed: u64) {
    let mut random = Random::new(seed);
    let memory = SharedMemory::new(MEMORY);
    let event = EventFd::new(EFD_NONBLOCK).expect("make an eventfd");
    let fds: [RawFd; 3] = [event.as_raw_fd(), memory.fd(), event.as_raw_fd()];
    // Up to two rings run meanwhile.
    let mut vm = Vm::start(daemon, random.below(3));
    for _ in 0..30 {
        let request = u32::try_from(random.below(47)).expect("small");
        let payload = payload(request, &mut random);
        let first = random.below(2);
        let count = [0, 1, 1, 2][random.below(4)].min(fds.len() - first);
        let size = u32::try_from(payload.len()).expect("small");
        let verdict = vm
            .client
            .provoke([request, 1 | 8, size], &payload, &fds[first..first + count]);
        if verdict == testkit::raw::Verdict::Closed {
            return;
        }
        (0..vm.rings.len()).for_each(|queue| vm.kick(queue));
    }
}

fn run(seeds: std::ops::Range<u64>, name: &str, attack: impl Fn(&Daemon, u64)) {
    let mut arena = Arena::new();
    for seed in seeds {
        // Random writes may go to all sectors except those that later prove that the daemon works.
        arena.case_that_writes(&format!("{name}, seed {seed}"), 0..64, |daemon| {
            attack(daemon, seed)
        });
    }
}

#[test]
fn streams_of_messages() {
    run(0..100, "messages", messages);
}

#[test]
fn more_streams_of_messages() {
    run(100..200, "messages", messages);
}

/// Descriptor tables, indices and headers are random. Some of the requests are sound.
#[test]
fn rings_of_noise() {
    run(0..100, "rings", |daemon, seed| {
        let mut random = Random::new(seed);
        let size = [4, 16, 256][random.below(3)];
        let features = if random.below(2) == 0 {
            0
        } else {
            testkit::vm::EVENT_IDX
        };
        let mut vm = Vm::start_with(daemon, 2, size, features);
        for _ in 0..20 {
            for index in 0..size.min(32) {
                let addr = [number(&mut random), HEADER, GUEST + 0x9_0000, HEADER][random.below(4)];
                let len = [1, 16, 512, 4096, random.next()][random.below(5)];
                let small = random.next().to_le_bytes();
                let bytes = [
                    &addr.to_le_bytes()[..],
                    &len.to_le_bytes()[..4],
                    &[small[0] & 7, 0],
                    &[small[1] % 33, 0],
                ]
                .concat();
                vm.memory
                    .write(vm.rings[0].desc + 16 * usize::from(index), &bytes);
            }
            let kind = [0, 1, 4, 8, 11, 13, 77][random.below(7)];
            vm.poke(HEADER, &header(kind, number(&mut random)));
            let head = u16::try_from(random.below(usize::from(size) + 1)).expect("small");
            vm.publish(0, head);
            vm.kick(0);
        }
        vm.read_sector_with(1, 3);
        vm.client.stop_ring(0).expect("GET_VRING_BASE");
    });
}

#[test]
fn bytes_of_noise() {
    run(0..100, "bytes", |daemon, seed| {
        let mut random = Random::new(seed);
        let mut client = testkit::target::client(daemon);
        for _ in 0..20 {
            let len = 8 * random.below(64);
            let bytes = random.bytes(len);
            if bytes.is_empty() || client.send_bytes(&[&bytes], &[]).is_err() {
                break;
            }
        }
    });
}
