//! A new daemon takes over from an old one while frontends work.

mod load;
mod service;

use std::fs;
use std::os::unix::net::UnixStream;

use serde_json::json;
use testkit::daemon::{Daemon, HAND_OVER, IMAGE, SOCKET, run};
use testkit::frontend::{Frontend, Op, all_features};
use testkit::process::wait_for;
use testkit::qmp::Qmp;
use vhost_user_blk::daemon::FailPoint;

pub(crate) use load::{under_load, wait_for_more};
use service::BLOCK;
pub(crate) use service::Service;

#[test]
fn many_take_overs_under_load_lose_nothing() {
    let number = std::env::var("TAKE_OVERS").map_or(10, |number| number.parse().expect("a number"));
    let mut service = Service::start(&[]);
    under_load(&mut service, |service, completed| {
        for _ in 0..number {
            wait_for_more(completed);
            service.take_over(&[]);
        }
        wait_for_more(completed);
        let other = run(
            &["--socket-path", "other.sock", "--blk-file", IMAGE],
            service.dir(),
        );
        assert!(
            other.output.contains("in use"),
            "the image is not locked: {}",
            other.output
        );
    });
    drop(UnixStream::connect(service.dir().join(SOCKET)).expect("the last process listens"));
}

/// The points at which the new process is killed.
const NEW: [&str; 7] = [
    "connected",
    "described",
    "made",
    "ready",
    "received",
    "restored",
    "taken",
];
/// The points at which the old process is killed, before it has passed its disks. At the first one, it has said nothing.
const OLD: [&str; 4] = ["asked", "passed", "parking", "parked"];

/// The point at which the old process is killed when the disks are the new one's.
const PASSED: &str = "handed-over";

/// The points at which the new process is stopped, not killed.
pub(crate) const EARLY: &str = "early";
pub(crate) const LATE: &str = "late";

#[test]
fn a_process_is_killed_at_every_point() {
    let all = FailPoint::ALL.map(|(name, _)| name);
    assert_eq!(all[..], [&NEW[..], &[EARLY, LATE], &OLD, &[PASSED]].concat());
}

#[test]
fn the_old_process_serves_when_the_new_one_is_killed() {
    let mut service = Service::start(&[]);
    under_load(&mut service, |service, completed| {
        for point in NEW {
            wait_for_more(completed);
            let number = service.start_successor(&["--fail-take-over", point]);
            service.later[number].wait();
            assert!(service.log(number).contains(point), "{}", service.log(number));
            service.later.pop();
            assert!(service.first.is_alive(), "{point}: {}", service.first.output());
            wait_for_more(completed);
        }
        service.take_over(&[]);
        wait_for_more(completed);
    });
}

#[test]
fn the_new_process_serves_when_the_old_one_is_killed() {
    let mut service = Service::start(&["--fail-take-over", PASSED]);
    under_load(&mut service, |service, completed| {
        wait_for_more(completed);
        let number = service.start_successor(&[]);
        assert!(!service.first.wait_for_exit().status.success());
        wait_for_more(completed);
        assert!(service.later[number].ended().is_none(), "{}", service.log(number));
    });
}

#[test]
fn a_new_process_serves_its_own_disks_if_the_old_one_is_killed_before_it_says_anything() {
    let disk = ["--socket-path", SOCKET, "--blk-file", IMAGE, "--num-queues", "8"];
    let mut service = Service::start(&["--fail-take-over", OLD[0]]);
    let mut frontend = service.connect(1, 1);
    assert_eq!(frontend.queue(0).run(&write_block(1)).ret, 0);
    let number = service.start_successor(&[&["--hand-over", HAND_OVER], &disk[..]].concat());
    assert!(!service.first.wait_for_exit().status.success());
    drop(frontend);
    let mut frontend = wait_for("the new process", || service.try_connect(1, 1).ok());
    assert_eq!(read_block(&mut frontend), [1; BLOCK]);
    service.take_over(&[]);
    assert_eq!(read_block(&mut frontend), [1; BLOCK]);
    let log = service.log(number);
    assert_eq!(log.matches("WARN").count(), 1, "{log}");
    assert!(log.contains("serving those of the options"), "{log}");
}

#[test]
fn a_new_process_without_disks_ends_if_the_old_one_is_killed_before_it_says_anything() {
    let mut service = Service::start(&["--fail-take-over", OLD[0]]);
    let frontend = service.connect(1, 1);
    let number = service.start_successor(&[]);
    assert!(!service.later[number].wait().success());
    let log = service.log(number);
    assert_eq!(log.matches("cannot take over").count(), 1, "{log}");
    assert!(log.contains("start the service again"), "{log}");
    assert!(!service.first.wait_for_exit().status.success());
    drop(frontend);
    // As a service manager does.
    service
        .first
        .start_again(&["--hand-over", HAND_OVER, "--num-queues", "8"]);
    drop(service.first.connect());
    assert_eq!(service.connect(1, 1).queue(0).run(&write_block(1)).ret, 0);
}

fn write_block(byte: u8) -> Op {
    Op::Write {
        offset: 0,
        data: vec![byte; BLOCK],
    }
}

fn read_block(frontend: &mut Frontend) -> Vec<u8> {
    let read = Op::Read {
        offset: 0,
        len: BLOCK,
    };
    frontend.queue(0).run(&read).data
}

#[test]
fn the_new_process_serves_anew_if_the_old_one_is_killed_before_it_passes_its_disks() {
    for (point, engine) in OLD[1..].iter().zip(["threads", "io_uring", "io_uring"]) {
        let mut service = Service::start(&["--fail-take-over", point, "--aio", engine]);
        let mut frontend = service.connect(1, 1);
        assert_eq!(frontend.queue(0).run(&write_block(1)).ret, 0);
        let number = service.start_successor(&[]);
        assert!(!service.first.wait_for_exit().status.success());
        drop(frontend);
        // The new process still waits for the end of the old one.
        let mut frontend = service.connect(1, 1);
        assert_eq!(read_block(&mut frontend), [1; BLOCK], "{point}");
        assert_eq!(frontend.queue(0).run(&write_block(2)).ret, 0);
        let other = run(
            &["--socket-path", "other.sock", "--blk-file", IMAGE],
            service.dir(),
        );
        assert!(other.output.contains("in use"), "{}", other.output);
        service.take_over(&[]);
        assert_eq!(read_block(&mut frontend), [2; BLOCK], "{point}");
        let log = service.log(number);
        assert_eq!(log.matches("WARN").count(), 1, "{log}");
    }
}

/// Asserts that the old process refuses for this reason, and goes on.
fn assert_refused(service: &mut Service, reason: &str) {
    let number = service.start_successor(&[]);
    assert!(!service.later[number].wait().success());
    let log = service.log(number);
    assert!(log.lines().count() <= 2 && log.contains(reason), "{log}");
    service.later.pop();
    for socket in [SOCKET, HAND_OVER] {
        assert!(service.dir().join(socket).exists(), "{socket} is gone");
    }
    assert!(service.first.is_alive() && service.first.output().contains(reason));
}

#[test]
fn stuck_requests_stay_with_the_old_process() {
    let dir = tempfile::tempdir().expect("make a directory");
    let disk = [
        "--socket-path",
        SOCKET,
        "--null",
        "1M",
        "--null-latency-ns",
        "5000000000",
    ];
    let first = Daemon::start_with(dir, &[&disk[..], &["--hand-over", HAND_OVER]].concat());
    let mut service = Service {
        first,
        later: Vec::new(),
    };
    let mut frontend = service.connect(1, 1);
    frontend.queue(0).submit(&Op::Read { offset: 0, len: 512 }, 7);
    frontend.queue(0).kick();
    service.first.wait_for(|_| true, "serve");
    assert_refused(&mut service, "export 'disk': requests are still in flight");
    let done = frontend.queue(0).drain();
    assert_eq!((done.len(), done[0].tag, done[0].ret), (1, 7, 0));
    service.take_over(&[]);
    assert_eq!(frontend.queue(0).run(&Op::Read { offset: 0, len: 512 }).ret, 0);
}

#[test]
fn statistics_go_on() {
    let mut daemon = Daemon::start(&vec![0; BLOCK * 8], &["--hand-over", HAND_OVER]);
    let mut frontend = Frontend::connect(&daemon.socket(), 1, 4, all_features()).expect("connect");
    for requests in [3, 5] {
        for _ in 0..requests {
            let read = Op::Read {
                offset: 0,
                len: BLOCK,
            };
            assert_eq!(frontend.queue(0).run(&read).ret, 0);
        }
        daemon.take_over(&[]);
    }
    assert_eq!(daemon.count("queue 0", "read"), 8);
    assert_eq!(daemon.count("total", "bytes_read"), 8 * BLOCK as u64);
    assert!(
        daemon.output().contains("latency of read: count=8 "),
        "{}",
        daemon.output()
    );
}

#[test]
fn a_process_that_cannot_be_reached_is_named() {
    let dir = tempfile::tempdir().expect("make a directory");
    let exit = run(&["--take-over", "none.sock"], dir.path());
    assert!(!exit.status.success());
    assert_eq!(exit.output.lines().count(), 1, "{}", exit.output);
    for words in ["none.sock", "--hand-over"] {
        assert!(exit.output.contains(words), "{}", exit.output);
    }
}

#[test]
fn objects_nodes_exports_and_monitors_are_taken_over() {
    let monitor = [
        "--chardev",
        "socket,id=m,path=qmp.sock,server=on,wait=off",
        "--monitor",
        "m",
    ];
    let null = [
        "--blockdev",
        "null-co,node-name=n,size=1M",
        "--export",
        "vhost-user-blk,id=x,node-name=n,addr.type=unix,addr.path=x.sock",
    ];
    let dir = tempfile::tempdir().expect("make a directory");
    let first = Daemon::start_with(
        dir,
        &[
            &monitor[..],
            &null,
            &[
                "--hand-over",
                HAND_OVER,
                "--sandbox-path",
                ".",
                "--pidfile",
                "pid",
            ],
        ]
        .concat(),
    );
    let mut service = Service {
        first,
        later: Vec::new(),
    };
    let image = service.dir().join("disk.img");
    fs::write(&image, vec![7; 1 << 20]).expect("make an image");
    let connect = |service: &Service| Qmp::connect(&service.dir().join("qmp.sock"));
    let mut client = connect(&service);
    let socket = service.dir().join("added.sock");
    for (command, arguments) in [
        (
            "object-add",
            json!({"qom-type": "iothread", "id": "io0", "poll-max-ns": 5000}),
        ),
        (
            "object-add",
            json!({"qom-type": "throttle-group", "id": "g",
            "limits": {"iops-total": 100_000}}),
        ),
        (
            "blockdev-add",
            json!({"driver": "throttle", "node-name": "t", "throttle-group": "g",
            "file": {"driver": "raw", "offset": 4096, "file": {"driver": "file", "filename": image}}}),
        ),
        (
            "block-export-add",
            json!({"type": "vhost-user-blk", "id": "e", "node-name": "t",
            "writable": true, "iothread": "io0", "serial": "abc",
            "addr": {"type": "unix", "path": socket}}),
        ),
        (
            "qom-set",
            json!({"path": "/objects/g", "property": "limits",
            "value": {"iops-total": 90_000}}),
        ),
    ] {
        client.execute(command, &arguments);
    }
    let queries = [
        ("query-named-block-nodes", json!({})),
        ("query-block-exports", json!({})),
        ("query-iothreads", json!({})),
        ("qom-get", json!({"path": "/objects/g", "property": "limits"})),
    ];
    let state = |client: &mut Qmp| {
        let mut all = queries
            .each_ref()
            .map(|(query, arguments)| client.execute(query, arguments));
        // Threads have new numbers, and count from zero.
        for iothread in all[2].as_array_mut().into_iter().flatten() {
            iothread["thread-id"] = 0.into();
            iothread["x-figures"] = 0.into();
        }
        all
    };
    let before = state(&mut client);
    drop(client);
    let mut frontend = Frontend::connect(&socket, 1, 1, all_features()).expect("connect");
    // What the options say about disks does not count.
    for options in [
        vec![],
        [&["--hand-over", HAND_OVER], &null[..], &monitor].concat(),
        // Without a monitor of its own.
        vec!["--sandbox-path", "."],
    ] {
        service.take_over(&options);
        let mut client = connect(&service);
        assert_eq!(state(&mut client), before);
        let read = frontend.queue(0).run(&Op::Read { offset: 0, len: 512 });
        assert!(read.ret == 0 && read.data == [7; 512]);
    }
    let other = service.dir().join("other.img");
    fs::write(&other, vec![8; 1 << 20]).expect("make an image");
    connect(&service).execute(
        "blockdev-add",
        &json!({"driver": "file", "node-name": "other", "filename": other}),
    );
    let pid = fs::read_to_string(service.dir().join("pid")).expect("the pid file");
    let last = service.later.last_mut().expect("a process");
    assert_eq!(pid.trim(), last.pid().to_string());
    last.signal(libc::SIGTERM);
    assert!(last.wait().success());
    for name in ["pid", "qmp.sock", "added.sock", "x.sock", HAND_OVER] {
        assert!(!service.dir().join(name).exists(), "{name} is left");
    }
}
