//! Messages that no honest frontend sends: each one is refused without harm, and the next connection works.

use std::os::fd::AsRawFd;
use std::time::Duration;

use testkit::daemon::Daemon;
use testkit::memory::SharedMemory;
use testkit::process::{threads, wait_for};
use testkit::random::Random;
use testkit::raw::{Answer, Client, NO_FD, mem_table, msg};
use testkit::target::{assert_serves, assert_unharmed, client, start};
use testkit::vm::{MEMORY, REGION, USER, Vm};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn queues_that_do_not_exist_are_refused() {
    let (daemon, baseline) = start();
    let event = EventFd::new(EFD_NONBLOCK).expect("make an eventfd");
    for index in [2, 3, 255, 256, 65536, u32::MAX] {
        let vring = |request| (request, words(&[index, 1]), vec![]);
        let fd = |request| {
            (
                request,
                (u64::from(index) & !NO_FD).to_le_bytes().to_vec(),
                vec![event.as_raw_fd()],
            )
        };
        let cases = [
            vring(msg::SET_VRING_NUM),
            vring(msg::SET_VRING_BASE),
            vring(msg::SET_VRING_ENABLE),
            (
                msg::SET_VRING_ADDR,
                [words(&[index, 0]), vec![0; 32]].concat(),
                vec![],
            ),
        ];
        for (request, payload, fds) in cases {
            assert!(
                client(&daemon).ask(request, &payload, &fds).is_refusal(),
                "request {request}, queue {index}"
            );
        }
        // In these messages only the low eight bits are an index.
        if (2..256).contains(&index) {
            for (request, payload, fds) in
                [msg::SET_VRING_KICK, msg::SET_VRING_CALL, msg::SET_VRING_ERR].map(fd)
            {
                assert!(
                    client(&daemon).ask(request, &payload, &fds).is_refusal(),
                    "request {request}, queue {index}"
                );
            }
        }
        assert!(
            client(&daemon).stop_ring(index).is_err(),
            "GET_VRING_BASE of queue {index}"
        );
    }
    assert_unharmed(daemon, &baseline);
}

#[test]
fn payloads_of_a_wrong_length_are_refused() {
    let (daemon, baseline) = start();
    for (request, right) in [
        (msg::SET_FEATURES, 8),
        (msg::SET_VRING_NUM, 8),
        (msg::SET_VRING_BASE, 8),
        (msg::SET_VRING_ENABLE, 8),
        (msg::SET_VRING_ADDR, 40),
        (msg::SET_VRING_KICK, 8),
        (msg::SET_VRING_CALL, 8),
        (msg::ADD_MEM_REG, 40),
        (msg::SET_MEM_TABLE, 40),
        (msg::SET_CONFIG, 13),
    ] {
        for len in [0, 1, right - 1, right + 1, 200] {
            let answer = client(&daemon).ask(request, &vec![0; len], &[]);
            assert!(
                answer.is_refusal(),
                "request {request} with {len} bytes: {answer:?}"
            );
        }
    }
    assert_unharmed(daemon, &baseline);
}

#[test]
fn invalid_headers_only_end_their_connection() {
    let (daemon, baseline) = start();
    for (name, header) in [
        ("a size of 4 KiB and more", [msg::SET_FEATURES, 1, 4097]),
        ("the largest size", [msg::SET_FEATURES, 1, u32::MAX]),
        ("version 0", [msg::GET_FEATURES, 0, 0]),
        ("version 3", [msg::GET_FEATURES, 3, 0]),
        ("a reply from the frontend", [msg::GET_FEATURES, 1 | 4, 0]),
        ("unknown flags", [msg::GET_FEATURES, 0xffff_fff1, 0]),
        ("request 0", [0, 1, 0]),
        ("a request that does not exist", [1000, 1 | 8, 0]),
        ("the largest request", [u32::MAX, 1, 0]),
    ] {
        let mut client = client(&daemon);
        let _ = client.send_bytes(&[&words(&header)], &[]);
        drop(client);
        assert_serves(&daemon);
        eprintln!("survived {name}");
    }
    assert_unharmed(daemon, &baseline);
}

#[test]
fn unknown_requests_are_refused() {
    let (daemon, baseline) = start();
    for request in [0, 21, 41, 100, 1000, u32::MAX] {
        assert!(
            client(&daemon).ask(request, &[], &[]).is_refusal(),
            "request {request}"
        );
    }
    assert_unharmed(daemon, &baseline);
}

#[test]
fn disconnecting_discards_a_partial_message() {
    let (daemon, baseline) = start();
    let whole = [words(&[msg::SET_VRING_ADDR, 1, 40]), vec![0; 40]].concat();
    for len in [1, 4, 11, 12, 13, 40, 51] {
        let mut client = client(&daemon);
        client.send_bytes(&[&whole[..len]], &[]).expect("send a part");
        drop(client);
    }
    assert_unharmed(daemon, &baseline);
}

/// Returns how often the daemon's control thread has gone to sleep, if it sleeps now.
fn sleeps(daemon: &Daemon) -> Option<u64> {
    let control = threads(daemon.pid())
        .into_iter()
        .find(|thread| thread["Name"] == "control")?;
    let sleeps = control["voluntary_ctxt_switches"].parse().expect("a number");
    control["State"].starts_with('S').then_some(sleeps)
}

#[test]
fn a_message_in_two_parts_is_one_message() {
    let (daemon, baseline) = start();
    let event = EventFd::new(EFD_NONBLOCK).expect("make an eventfd");
    let whole = [words(&[msg::SET_VRING_CALL, 1 | 8, 8]), words(&[0, 0])].concat();
    let mut client = client(&daemon);
    // The message is split anywhere, with the descriptor in the first part.
    for cut in 1..whole.len() {
        let before = wait_for("the daemon to sleep", || sleeps(&daemon));
        client
            .send_bytes(&[&whole[..cut]], &[event.as_raw_fd()])
            .expect("the first part");
        if cut % 4 == 0 {
            wait_for("the daemon to see the first part alone", || {
                sleeps(&daemon).filter(|sleeps| *sleeps > before)
            });
        }
        client.send_bytes(&[&whole[cut..]], &[]).expect("the second part");
        assert_eq!(client.answer(msg::SET_VRING_CALL), Answer::Ack, "cut at {cut}");
    }
    // The message comes byte by byte.
    for (at, byte) in whole.iter().enumerate() {
        let fds = [event.as_raw_fd()];
        let fds = if at == 0 { &fds[..] } else { &[] };
        client.send_bytes(&[&[*byte]], fds).expect("a byte");
    }
    assert_eq!(client.answer(msg::SET_VRING_CALL), Answer::Ack);
    drop(client);
    assert_unharmed(daemon, &baseline);
}

#[test]
fn unexpected_descriptors_are_closed() {
    let (daemon, baseline) = start();
    let events: Vec<EventFd> = (0..8)
        .map(|_| EventFd::new(EFD_NONBLOCK).expect("make an eventfd"))
        .collect();
    let fds: Vec<i32> = events.iter().map(AsRawFd::as_raw_fd).collect();
    let table = mem_table(&[REGION]);
    let add = [vec![0; 8], REGION.bytes()].concat();
    let index = 0_u64.to_le_bytes().to_vec();
    let without = NO_FD.to_le_bytes().to_vec();
    for (name, request, payload, count) in [
        ("features", msg::SET_FEATURES, vec![0; 8], 1),
        ("a queue size", msg::SET_VRING_NUM, words(&[0, 64]), 8),
        ("a kick without one", msg::SET_VRING_KICK, index.clone(), 0),
        ("a kick with two", msg::SET_VRING_KICK, index.clone(), 2),
        ("a call with eight", msg::SET_VRING_CALL, index, 8),
        ("no kick, with one", msg::SET_VRING_KICK, without, 1),
        (
            "a table of one region without one",
            msg::SET_MEM_TABLE,
            table.clone(),
            0,
        ),
        ("a table of one region with two", msg::SET_MEM_TABLE, table, 2),
        ("a region without one", msg::ADD_MEM_REG, add.clone(), 0),
        ("a region with two", msg::ADD_MEM_REG, add, 2),
        ("a request that does not exist", 1000, vec![], 8),
    ] {
        let answer = client(&daemon).ask(request, &payload, &fds[..count]);
        eprintln!("{name}: {answer:?}");
        assert!(
            count < 2 || request == msg::SET_FEATURES || answer.is_refusal() || request == msg::SET_VRING_NUM,
            "{name}"
        );
    }
    assert_unharmed(daemon, &baseline);
}

#[test]
fn configuration_writes_change_the_write_cache_only() {
    let (daemon, baseline) = start();
    let mut one = client(&daemon);
    let before = one.config(0, 60).expect("60 bytes");
    drop(one);
    for (offset, len) in [
        (0, 8),
        (0, 60),
        (8, 4),
        (20, 4),
        (31, 2),
        (33, 1),
        (34, 2),
        (59, 1),
        (60, 1),
        (255, 1),
    ] {
        let mut one = client(&daemon);
        one.set_config(offset, &vec![0xff; len]);
        drop(one);
        let mut next = client(&daemon);
        let after = next.config(0, 60).expect("60 bytes");
        assert_eq!(
            (&after[..32], &after[33..]),
            (&before[..32], &before[33..]),
            "{len} bytes at {offset}"
        );
    }
    assert_unharmed(daemon, &baseline);
}

#[test]
fn configuration_reads_outside_of_the_space_are_refused() {
    let (daemon, baseline) = start();
    for (offset, len) in [
        (60, 200),
        // From offset 256 on the space appears a second time, for old versions of Cloud Hypervisor.
        (255, 2),
        (1000, 4),
        (u32::MAX, 1),
        (u32::MAX - 3, 8),
    ] {
        let reply = client(&daemon).config(offset, len);
        // The message is refused (an empty reply or a disconnect), or answered with meaningless bytes.
        if let Ok(bytes) = reply {
            assert!(
                bytes.iter().all(|&byte| byte == 0),
                "{len} bytes at {offset}: {bytes:?}"
            );
        }
    }
    assert_unharmed(daemon, &baseline);
}

#[test]
fn ring_messages_in_any_order_are_harmless() {
    let (daemon, baseline) = start();
    let mut vm = Vm::connect(&daemon, 0);
    let event = EventFd::new(EFD_NONBLOCK).expect("make an eventfd");
    event.write(1).expect("kick");
    // The order of these messages makes no sense. No ring may start or break.
    vm.client.vring_state(msg::SET_VRING_ENABLE, 0, 1);
    vm.client
        .vring_fd(msg::SET_VRING_KICK, 0, Some(event.as_raw_fd()));
    vm.client.vring_addr(0, USER, USER + 0x8000, USER + 0x5000);
    let _ = vm.client.stop_ring(0);
    let _ = vm.client.stop_ring(0);
    drop(vm);
    assert_unharmed(daemon, &baseline);
}

#[test]
fn unread_replies_do_not_block_others_for_ever() {
    let (daemon, baseline) = start();
    let mut client = client(&daemon);
    // These are more replies than a socket buffer holds. Sending stops when the daemon stops reading.
    client.set_write_timeout(Duration::from_millis(200));
    while client.send(msg::GET_FEATURES, 0, &[], &[]).is_ok() {}
    drop(client);
    assert_unharmed(daemon, &baseline);
}

#[test]
fn a_hanging_connection_does_not_delay_shutdown() {
    // One connection stops in the middle of a message, the other one never reads its replies.
    let half: fn(&mut Client) = |client| {
        client
            .send_bytes(&[&words(&[msg::SET_VRING_ADDR, 1, 40])], &[])
            .expect("send a header");
    };
    let deaf: fn(&mut Client) = |client| {
        client.set_write_timeout(Duration::from_millis(200));
        while client.send(msg::GET_FEATURES, 0, &[], &[]).is_ok() {}
    };
    for hang in [half, deaf] {
        let (mut daemon, _) = start();
        let mut client = client(&daemon);
        hang(&mut client);
        let exit = daemon.terminate();
        assert!(exit.status.success(), "{}: {}", exit.status, exit.output);
        assert!(exit.took < Duration::from_secs(5), "it took {:?}", exit.took);
    }
}

#[test]
fn random_messages_do_no_harm() {
    let (daemon, baseline) = start();
    let memory = SharedMemory::new(MEMORY);
    let event = EventFd::new(EFD_NONBLOCK).expect("make an eventfd");
    let mut random = Random::new(1);
    for _ in 0..200 {
        let mut client = client(&daemon);
        for _ in 0..10 {
            let request = u32::try_from(random.below(45)).expect("small");
            let len = [0, 8, 12, 40, random.below(100)][random.below(5)];
            let mut byte = || [0, 1, 2, 0xff, random.next().to_le_bytes()[0]][random.below(5)];
            let payload: Vec<u8> = (0..len).map(|_| byte()).collect();
            let fds = [event.as_raw_fd(), memory.fd()];
            let count = random.below(3);
            if client.send(request, 0, &payload, &fds[..count]).is_err() {
                break;
            }
        }
    }
    drop(memory);
    assert_unharmed(daemon, &baseline);
}
