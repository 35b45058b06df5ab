//! `--inject`: each kind of fault with each engine, and disks that do not answer.

use std::fs;

use crate::{EIO, NO_ROOM, ROOM_AGAIN, connect, engines, read, said, write};
use testkit::daemon::{Daemon, run};
use testkit::frontend::Op;
use testkit::process::wait_for;

const MIB: usize = 1 << 20;

fn data(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n / 512 % 255).to_le_bytes()[0] + 1).collect()
}

/// Runs `test` on a daemon with these rules, once for each engine.
fn with(rules: &[&str], options: &[&str], test: impl Fn(&mut Daemon)) {
    let image = tempfile::NamedTempFile::new().expect("make a file");
    image.as_file().set_len(4096).expect("size it");
    for engine in engines(image.path()) {
        let rules = rules.iter().flat_map(|rule| ["--inject", rule]);
        let options: Vec<&str> = engine.iter().chain(options).copied().chain(rules).collect();
        let mut daemon = Daemon::start(&data(MIB), &options);
        let loud = |daemon: &Daemon| said(daemon, "FAULT INJECTION IS ON") > 0;
        daemon.wait_for(loud, "say that it will fail on purpose");
        test(&mut daemon);
    }
}

#[test]
fn some_sectors_cannot_be_read() {
    with(&["read:eio:sector=64-71"], &[], |daemon| {
        let mut frontend = connect(daemon, 1);
        let queue = frontend.queue(0);
        for (sector, sectors, ret) in [(0, 64, 0), (0, 65, EIO), (71, 1, EIO), (72, 56, 0)] {
            let done = queue.run(&read(sector * 512, sectors * 512));
            assert_eq!(done.ret, ret, "{sector}+{sectors}");
        }
        assert_eq!(queue.run(&write(64 * 512, &[9; 4096])).ret, 0);
    });
}

#[test]
fn ignored_read_errors_return_zeroes() {
    with(&["read:eio:sector=64-71"], &["--rerror", "ignore"], |daemon| {
        let mut frontend = connect(daemon, 1);
        let done = frontend.queue(0).run(&read(0, 65_536));
        let mut expected = data(65_536);
        expected[64 * 512..72 * 512].fill(0);
        assert!(done.ret == 0 && done.data == expected);
    });
}

#[test]
fn a_temporary_enospc_is_only_a_pause() {
    with(&["write:enospc:after=2,count=9"], &[], |daemon| {
        let mut frontend = connect(daemon, 4);
        let queue = frontend.queue(0);
        for i in 0..4 {
            queue.submit(&write(i * 4096, &[9; 4096]), i);
        }
        queue.kick();
        assert!(queue.drain().iter().all(|done| done.ret == 0));
        assert!(queue.run(&read(0, 16_384)).data == [9; 16_384]);
        daemon.wait_for(|d| said(d, ROOM_AGAIN) == 1, "say that there is room");
        assert_eq!(said(daemon, NO_ROOM), 1);
    });
}

#[test]
fn a_torn_write_is_eventually_complete() {
    with(&["write:torn:edquot,count=3", "read:short"], &[], |daemon| {
        let mut frontend = connect(daemon, 1);
        let queue = frontend.queue(0);
        let new: Vec<u8> = data(65_536).into_iter().rev().collect();
        assert_eq!(queue.run(&write(8192, &new)).ret, 0);
        assert!(queue.run(&read(8192, 65_536)).data == new);
        assert_eq!(daemon.count("total", "held_ever"), 1);
    });
}

#[test]
fn a_torn_write_leaves_half_and_an_error() {
    with(&["write:torn"], &[], |daemon| {
        let mut frontend = connect(daemon, 1);
        let queue = frontend.queue(0);
        assert_eq!(queue.run(&write(0, &[0; 8192])).ret, EIO);
        let mut expected = data(16_384);
        expected[..4096].fill(0);
        assert!(queue.run(&read(0, 16_384)).data == expected);
    });
}

#[test]
fn short_transfers_are_resumed() {
    with(&["read:short", "write:short"], &[], |daemon| {
        let mut frontend = connect(daemon, 1);
        let queue = frontend.queue(0);
        for len in [512, 1024, 4096, 65_536] {
            let new: Vec<u8> = data(len).into_iter().map(|byte| byte ^ 0x55).collect();
            assert_eq!(queue.run(&write(4096, &new)).ret, 0);
            assert!(queue.run(&read(4096, len)).data == new, "{len}");
        }
    });
}

#[test]
fn an_injected_flush_error_reaches_the_guest() {
    with(&["flush:eio:count=1"], &[], |daemon| {
        let mut frontend = connect(daemon, 1);
        let queue = frontend.queue(0);
        assert_eq!(queue.run(&Op::Flush).ret, EIO);
        assert_eq!(queue.run(&Op::Flush).ret, 0);
    });
}

#[test]
fn a_stuck_request_is_reported_once_then_served() {
    with(&["read:delay=1500ms,count=2"], &["--io-timeout", "1"], |daemon| {
        let mut frontend = connect(daemon, 4);
        let queue = frontend.queue(0);
        for i in 0..2 {
            queue.submit(&read(i * 4096, 4096), i);
        }
        queue.submit(&write(MIB / 2, &[1; 4096]), 2);
        queue.kick();
        let (first, _) = queue.wait();
        assert_eq!(first[0].tag, 2, "the others do not wait for those");
        assert!(queue.drain().iter().all(|done| done.ret == 0));
        assert_eq!(said(daemon, "the disk does not answer"), 1, "{}", daemon.output());
        assert!(
            daemon.output().contains("op=\"read\" sector="),
            "{}",
            daemon.output()
        );
        assert_eq!(daemon.count("queue 0", "late"), 2);
    });
}

#[test]
fn stuck_requests_cannot_prevent_a_failing_exit() {
    let mut daemon = Daemon::start(&data(MIB), &["--inject", "read:delay=100s"]);
    let mut frontend = connect(&daemon, 1);
    let queue = frontend.queue(0);
    queue.submit(&read(0, 4096), 0);
    queue.kick();
    wait_for("the request to be taken", || {
        (daemon.count("total", "kicks") > 0).then_some(())
    });
    let exit = daemon.terminate();
    assert!(
        exit.status.code() == Some(1) && exit.took.as_secs() < 5,
        "{exit:?}"
    );
    assert!(exit.output.contains("requests are still in flight"), "{exit:?}");
    assert!(!daemon.socket().exists(), "the socket is still there");
}

#[test]
fn a_held_request_is_not_called_late() {
    with(&["write:enospc:count=6"], &["--io-timeout", "1"], |daemon| {
        let mut frontend = connect(daemon, 1);
        assert_eq!(frontend.queue(0).run(&write(0, &[9; 4096])).ret, 0);
        assert_eq!(daemon.count("total", "late"), 0);
    });
}

#[test]
fn an_invalid_rule_is_refused_with_one_line() {
    let dir = tempfile::tempdir().expect("make a directory");
    fs::write(dir.path().join("disk.img"), [0; 512]).expect("write the image");
    for rule in ["read", "reads:eio", "read:eio:sector=x"] {
        let args = ["--socket-path", "s", "--blk-file", "disk.img", "--inject", rule];
        let exit = run(&args, dir.path());
        assert_eq!(
            (exit.status.code(), exit.output.lines().count()),
            (Some(2), 1),
            "{exit:?}"
        );
        assert!(exit.output.contains("--inject"), "{}", exit.output);
    }
}
