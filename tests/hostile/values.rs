//! Well-formed messages with impossible numbers.

use std::os::fd::AsRawFd;

use crate::arena::Arena;
use testkit::inflight::Inflight;
use testkit::raw::{Answer, PROTOCOL_FEATURES, msg};
use testkit::vm::{GUEST, MEMORY, Ring, USER, Vm};

const INDICES: [u32; 7] = [0, 1, 2, 3, 255, 256, u32::MAX];
const NUMBERS: [u32; 10] = [0, 1, 2, 3, 16, 1023, 2048, 65535, 65536, u32::MAX];

#[test]
fn ring_numbers() {
    let mut arena = Arena::new();
    for index in INDICES {
        for number in NUMBERS {
            for (request, sound) in [
                (msg::SET_VRING_NUM, number.is_power_of_two() && number <= 1024),
                (msg::SET_VRING_BASE, number <= 65535),
                (msg::SET_VRING_ENABLE, number <= 1),
            ] {
                arena.client(&format!("request {request}, queue {index}, {number}"), |client| {
                    let answer = client.vring_state(request, index, number);
                    assert_eq!(answer == Answer::Ack, sound && index < 2, "{answer:?}");
                });
            }
        }
    }
}

#[test]
fn only_existing_rings_can_be_stopped() {
    let mut arena = Arena::new();
    for index in INDICES {
        arena.client(&format!("GET_VRING_BASE of queue {index}"), |client| {
            assert_eq!(client.stop_ring(index).is_ok(), index < 2);
        });
    }
}

#[test]
fn features_that_were_not_offered() {
    let mut arena = Arena::new();
    for (get, set) in [
        (msg::GET_FEATURES, msg::SET_FEATURES),
        (msg::GET_PROTOCOL_FEATURES, msg::SET_PROTOCOL_FEATURES),
    ] {
        for bit in 0..64 {
            arena.client(&format!("request {set}, bit {bit}"), |client| {
                let offered = client.get_u64(get).expect("an answer");
                let must = if set == msg::SET_FEATURES {
                    PROTOCOL_FEATURES
                } else {
                    0b1000
                };
                let accepted = must | 1_u64 << bit;
                let answer = client.ask(set, &accepted.to_le_bytes(), &[]);
                assert_eq!(answer == Answer::Ack, accepted & !offered == 0, "{answer:?}");
            });
        }
    }
}

#[test]
fn ring_addresses() {
    let mut arena = Arena::new();
    let end = USER + MEMORY as u64;
    let sound = [USER, USER + 0x8000, USER + 0x5000];
    let bad = [
        0,
        1,
        USER - 16,
        USER + 1,
        end,
        end - 16,
        GUEST,
        1 << 63,
        u64::MAX - 15,
        u64::MAX,
    ];
    for (part, name) in [(0, "descriptors"), (1, "used ring"), (2, "available ring")] {
        for addr in bad {
            arena.case(&format!("{name} at {addr:#x}"), |daemon| {
                let mut vm = Vm::connect(daemon, 0);
                vm.share_memory();
                let mut at = sound;
                at[part] = addr;
                let ring = Ring::new(0, 16);
                vm.memory.store_u16(ring.avail + 2, 1);
                let kick = Some(ring.kick.as_raw_fd());
                let refused = vm.client.vring_state(msg::SET_VRING_NUM, 0, 16).is_refusal()
                    || vm.client.vring_addr(0, at[0], at[1], at[2]).is_refusal()
                    || vm.client.vring_fd(msg::SET_VRING_KICK, 0, kick).is_refusal();
                assert!(refused);
                assert_eq!(vm.memory.load_u16(0x8002), 0, "the ring ran");
            });
        }
    }
}

#[test]
fn a_running_ring_keeps_its_place() {
    let mut arena = Arena::new();
    type Change = fn(&mut Vm) -> Answer;
    let changes: [(&str, Change); 5] = [
        ("size", |vm| vm.client.vring_state(msg::SET_VRING_NUM, 0, 8)),
        ("base", |vm| vm.client.vring_state(msg::SET_VRING_BASE, 0, 7)),
        ("descriptors", |vm| {
            vm.client.vring_addr(0, USER + 64, USER + 0x8000, USER + 0x5000)
        }),
        ("used ring", |vm| {
            vm.client.vring_addr(0, USER, USER + 0x9000, USER + 0x5000)
        }),
        ("available ring", |vm| {
            vm.client.vring_addr(0, USER, USER + 0x8000, USER)
        }),
    ];
    for (name, change) in changes {
        arena.case(&format!("another {name} while it runs"), |daemon| {
            let mut vm = Vm::start(daemon, 2);
            vm.read_sector(0, 1);
            assert!(change(&mut vm).is_refusal());
            vm.read_sector(0, 2);
            vm.read_sector(1, 3);
        });
    }
}

#[test]
fn configuration_accesses() {
    let mut arena = Arena::new();
    for offset in [0, 32, 59, 60, 61, 255, 4095, 4096, u32::MAX - 3, u32::MAX] {
        for size in [0, 1, 4, 60, 256] {
            arena.client(&format!("read {size} bytes at {offset}"), |client| {
                let _ = client.config(offset, size);
            });
            arena.client(&format!("write {size} bytes at {offset}"), |client| {
                let before = client.config(0, 60).expect("the configuration");
                client.set_config(offset, &vec![0xff; usize::try_from(size).expect("small")]);
                if let Ok(after) = client.config(0, 60) {
                    assert_eq!((&after[..32], &after[33..]), (&before[..32], &before[33..]));
                }
            });
        }
    }
    for (name, header) in [
        ("a size that lies", [0, 61, 0]),
        ("the largest size", [0, u32::MAX, 0]),
        ("an end that wraps", [u32::MAX, u32::MAX, 0]),
        ("flags that nobody has defined", [32, 1, u32::MAX]),
    ] {
        for request in [msg::GET_CONFIG, msg::SET_CONFIG] {
            arena.client(&format!("request {request} with {name}"), |client| {
                let payload = [header.map(u32::to_le_bytes).concat(), vec![0xff; 1]].concat();
                client.provoke([request, 1 | 8, 13], &payload, &[]);
            });
        }
    }
}

#[test]
fn inflight_regions() {
    let mut arena = Arena::new();
    let lie = |region: &mut Inflight, field: usize, value: u64| {
        let small = u16::try_from(value & 0xffff).expect("16 bits");
        match field {
            0 => region.size = value,
            1 => region.offset = value,
            2 => region.queues = small,
            _ => region.queue_size = small,
        }
    };
    for (field, name) in [(0, "size"), (1, "offset"), (2, "queues"), (3, "queue size")] {
        for value in [
            1,
            3,
            4095,
            32767,
            1 << 20,
            1 << 40,
            1 << 63,
            u64::MAX - 4095,
            u64::MAX,
        ] {
            arena.client(&format!("SET_INFLIGHT_FD, {name} {value:#x}"), |client| {
                let mut region = Inflight::get(client, 2, 16);
                lie(&mut region, field, value);
                let answer = region.set(client);
                // A value smaller than the real one is accepted if it is large enough for the rings.
                let less = match field {
                    0 => [4095, 32767].contains(&value),
                    1 => false,
                    _ => value == 1,
                };
                assert_eq!(answer == Answer::Ack, less, "{answer:?}");
            });
        }
    }
    for (queues, size) in [
        (0, 16),
        (3, 16),
        (u16::MAX, 16),
        (2, 0),
        (2, 17),
        (2, 2048),
        (2, u16::MAX),
    ] {
        arena.client(
            &format!("GET_INFLIGHT_FD of {queues} queues of {size}"),
            |client| {
                let numbers = [queues, size, 0, 0].map(u16::to_le_bytes).concat();
                let payload = [vec![0; 16], numbers].concat();
                client.provoke([msg::GET_INFLIGHT_FD, 1, 24], &payload, &[]);
            },
        );
    }
}

#[test]
fn dirty_logs() {
    let mut arena = Arena::new();
    let file = tempfile::tempfile_in("/dev/shm").expect("make a file in memory");
    file.set_len(8192).expect("size it");
    for size in [0, 1, 63, 4096, 8192, 8193, 1 << 40, 1 << 63, u64::MAX] {
        for offset in [0, 1, 4096, 8192, 1 << 40, u64::MAX - 4095, u64::MAX] {
            arena.case(&format!("a log of {size} bytes at {offset}"), |daemon| {
                let mut vm = Vm::start(daemon, 2);
                let sound = offset % 4096 == 0 && size >= 64 && size.saturating_add(offset) <= 8192;
                let reply = vm.client.set_log(size, offset, file.as_raw_fd());
                assert_eq!(reply.is_some(), sound);
                if sound {
                    vm.read_sector(0, 1);
                }
            });
        }
    }
}

#[test]
fn messages_before_anything_is_negotiated() {
    let mut arena = Arena::new();
    for request in 1..=46 {
        for len in [0, 8, 40] {
            arena.case(&format!("request {request} of {len} bytes first"), |daemon| {
                let mut client = testkit::raw::Client::new(daemon.connect());
                client.provoke(
                    [request, 1 | 8, len],
                    &vec![0; usize::try_from(len).expect("small")],
                    &[],
                );
            });
        }
    }
}

#[test]
fn repeated_messages() {
    let mut arena = Arena::new();
    for request in [
        msg::SET_OWNER,
        msg::RESET_DEVICE,
        msg::GET_FEATURES,
        msg::GET_QUEUE_NUM,
        msg::GET_MAX_MEM_SLOTS,
    ] {
        arena.case(&format!("request {request} again and again"), |daemon| {
            let mut vm = Vm::start(daemon, 2);
            for _ in 0..50 {
                vm.client.provoke([request, 1 | 8, 0], &[], &[]);
            }
        });
    }
}
