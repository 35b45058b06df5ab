//! A disk whose requests complete by a timer. It takes asynchronous storage through every policy.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use testkit::daemon::{Daemon, SOCKET};
use testkit::frontend::{Frontend, Op, all_features};
use testkit::inflight::Inflight;
use testkit::memory::memfd;
use testkit::raw::{Answer, LOG_ALL, PROTOCOL_FEATURES, VERSION_1, msg};
use testkit::vm::{DATA, FILL, GUEST, HEADER, MEMORY, Ring, STATUS, Vm, header, linked, readable, writable};

const EIO: i32 = -libc::EIO;
const PAGE: u64 = 4096;

/// Starts a daemon with a null disk of 1 MiB whose requests take `latency`.
fn start(latency: Duration, options: &[&str]) -> Daemon {
    let dir = tempfile::tempdir().expect("make a directory");
    let latency = latency.as_nanos().to_string();
    let args = [
        "--socket-path",
        SOCKET,
        "--null",
        "1M",
        "--null-latency-ns",
        &latency,
    ];
    Daemon::start_with(dir, &[&args, options].concat())
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn connect(daemon: &Daemon, depth: usize) -> Frontend {
    Frontend::connect(&daemon.socket(), 1, depth, all_features()).expect("connect")
}

fn write(offset: u64, len: usize) -> Op {
    Op::Write {
        offset,
        data: vec![1; len],
    }
}

/// Makes a read of one sector available, without a kick.
fn offer_read(vm: &mut Vm, i: u16) {
    let slot = u64::from(i);
    let (head, data, status) = (HEADER + 16 * slot, DATA + 512 * slot, STATUS + slot);
    vm.poke(head, &header(0, slot));
    vm.poke(status, &[FILL]);
    let chain = [readable(head, 16), writable(data, 512), writable(status, 1)];
    vm.put_descs(0, 3 * i, &linked(3 * i, &chain));
    vm.publish(0, 3 * i);
}

#[test]
fn requests_of_every_kind_come_back_later() {
    let mut daemon = start(ms(20), &[]);
    assert!(daemon.output().contains("engine=timer"), "{}", daemon.output());
    let mut frontend = connect(&daemon, 8);
    let queue = frontend.queue(0);
    let begun = Instant::now();
    let ops = [Op::Read { offset: 0, len: 4096 }, write(4096, 4096), Op::Flush];
    for (tag, op) in ops.iter().enumerate() {
        queue.submit(op, tag);
    }
    queue.kick();
    assert!(queue.drain().iter().all(|done| done.ret == 0));
    assert!(begun.elapsed() >= ms(20));
    assert_eq!(daemon.count("total", "requests"), 3);
}

#[test]
fn a_slow_disk_is_served_at_once() {
    let begun = Instant::now();
    // A minute is the longest latency.
    let daemon = start(Duration::from_secs(60), &[]);
    let frontend = connect(&daemon, 1);
    assert_eq!(frontend.config().capacity.to_native(), (1 << 20) / 512);
    assert!(begun.elapsed().as_secs() < 60);
}

#[test]
fn error_policies_hold_report_and_ignore() {
    let mut daemon = start(
        ms(1),
        &[
            "--inject",
            "write:enospc:count=3",
            "--inject",
            "read:eio:sector=8-15",
        ],
    );
    let mut frontend = connect(&daemon, 4);
    let queue = frontend.queue(0);
    assert_eq!(queue.run(&write(0, 4096)).ret, 0, "held until there is room");
    assert_eq!(daemon.count("total", "held_ever"), 1);
    assert_eq!(
        queue
            .run(&Op::Read {
                offset: 4096,
                len: 512
            })
            .ret,
        EIO
    );

    let daemon = start(ms(1), &["--inject", "read:eio:sector=8-15", "--rerror", "ignore"]);
    let mut frontend = connect(&daemon, 4);
    let done = frontend.queue(0).run(&Op::Read {
        offset: 4096,
        len: 4096,
    });
    assert!(done.ret == 0 && done.data == [0; 4096]);
}

#[test]
fn every_error_policy_works() {
    let read = Op::Read { offset: 0, len: 4096 };
    let write = write(0, 4096);
    for (fault, policy, op, ret, held) in [
        ("read:eio:count=1", ["--rerror", "report"], &read, EIO, 0),
        ("read:eio:count=1", ["--rerror", "ignore"], &read, 0, 0),
        ("write:enospc:count=1", ["--werror", "report"], &write, EIO, 0),
        ("write:eio:count=1", ["--werror", "ignore"], &write, 0, 0),
        ("write:eio:count=1", ["--werror", "enospc"], &write, EIO, 0),
        ("write:enospc:count=2", ["--werror", "enospc"], &write, 0, 1),
    ] {
        let mut daemon = start(ms(1), &[&["--inject", fault], &policy[..]].concat());
        let mut frontend = connect(&daemon, 1);
        let done = frontend.queue(0).run(op);
        assert_eq!(done.ret, ret, "{fault} {policy:?}");
        assert_eq!(daemon.count("total", "held_ever"), held, "{fault} {policy:?}");
    }
}

#[test]
fn a_slow_request_is_reported_once() {
    let mut daemon = start(ms(1500), &["--io-timeout", "1"]);
    let mut frontend = connect(&daemon, 1);
    let done = frontend.queue(0).run(&Op::Read { offset: 0, len: 512 });
    assert_eq!(done.ret, 0);
    assert_eq!(daemon.count("total", "late"), 1);
}

#[test]
fn a_stopping_ring_waits_for_requests_in_flight() {
    let daemon = start(ms(200), &[]);
    let mut vm = Vm::start(&daemon, 1);
    for i in 0..4 {
        offer_read(&mut vm, i);
    }
    vm.kick(0);
    // The kick may come after the stop. Requests that were not taken wait for the next start.
    let base = vm.client.stop_ring(0).expect("stop");
    assert_eq!(u32::from(vm.published(0)), base);
    assert!(vm.peek(STATUS, base as usize).iter().all(|status| *status == 0));
}

#[test]
fn stopping_the_last_ring_waits_for_its_flush() {
    // SET_FEATURES without a write cache flushes, and so does the stop of the last ring. Both are answered after the
    // flush.
    let daemon = start(ms(100), &[]);
    let mut vm = Vm::connect(&daemon, 0);
    vm.share_memory();
    vm.start_ring(0, Ring::new(0, 16));
    let begun = Instant::now();
    vm.client.stop_ring(0).expect("stop");
    assert!(begun.elapsed() >= ms(100), "the flush takes its time");
}

#[test]
fn a_successor_completes_a_killed_daemons_requests() {
    let mut daemon = start(ms(400), &[]);
    let mut vm = Vm::connect(&daemon, 0);
    let region = Inflight::get(&mut vm.client, 1, 16);
    assert_eq!(region.set(&mut vm.client), Answer::Ack);
    vm.share_memory();
    vm.start_ring(0, Ring::new(0, 16));
    for i in 0..3 {
        offer_read(&mut vm, i);
    }
    vm.kick(0);
    daemon.wait_for(|_| region.marked(0).len() == 3, "take the requests");
    daemon.restart(libc::SIGKILL);
    vm.reconnect(daemon.connect(), 0);
    assert_eq!(region.set(&mut vm.client), Answer::Ack);
    vm.share_memory();
    vm.restart_rings();
    for _ in 0..3 {
        vm.outcome(0);
    }
    assert_eq!(vm.peek(STATUS, 3), [0; 3]);
    assert!(region.marked(0).is_empty());
}

#[test]
fn late_completions_are_marked_in_the_log() {
    const LOG_LEN: u64 = (GUEST + MEMORY as u64) / PAGE / 8;
    let daemon = start(ms(50), &[]);
    let mut vm = Vm::start(&daemon, 1);
    let log: File = memfd(PAGE);
    assert!(vm.client.set_log(LOG_LEN, 0, log.as_raw_fd()).is_some());
    let features = VERSION_1 | PROTOCOL_FEATURES | LOG_ALL;
    let answer = vm.client.ask(msg::SET_FEATURES, &features.to_le_bytes(), &[]);
    assert_eq!(answer, Answer::Ack);
    offer_read(&mut vm, 0);
    vm.kick(0);
    vm.outcome(0);
    let mut bytes = vec![0; usize::try_from(LOG_LEN).expect("it fits")];
    log.read_exact_at(&mut bytes, 0).expect("read the log");
    for address in [DATA, STATUS] {
        let page = address / PAGE;
        let byte = bytes[usize::try_from(page / 8).expect("it fits")];
        assert!(byte & (1 << (page % 8)) != 0, "{address:#x}");
    }
}

#[test]
fn refreshing_an_unchanged_size_is_not_logged() {
    let mut daemon = start(ms(5), &[]);
    daemon.signal(libc::SIGHUP);
    let mut frontend = connect(&daemon, 1);
    assert_eq!(
        frontend
            .queue(0)
            .run(&Op::Read {
                offset: (1 << 20) - 512,
                len: 512
            })
            .ret,
        0
    );
    drop(frontend);
    let exit = daemon.terminate();
    assert!(!exit.output.contains("new size"), "{}", exit.output);
}
