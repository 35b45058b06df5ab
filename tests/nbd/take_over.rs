//! A new daemon takes over a disk on a server.

use std::fs;

use testkit::certificates::Authority;
use testkit::daemon::{Daemon, HAND_OVER};
use testkit::frontend::{Frontend, Op};

use crate::server::{
    BLOCK, connect, directory, has, image, long_form, nbdkit, qemu_nbd, read, start, start_after, write,
};

/// Options that allow a process to connect to the server of [`long_form`].
fn allowed(node: &str, before: &[&str]) -> Vec<String> {
    let before = before.iter().map(ToString::to_string);
    before.chain(long_form(node)).collect()
}

/// Takes over again and again with writes in flight, which are checked afterwards.
fn take_over(daemon: &mut Daemon, frontend: &mut Frontend, options: &[String]) {
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    for round in 1..=3_u8 {
        let queue = frontend.queue(0);
        for tag in 0..8_usize {
            let (offset, data) = ((tag * BLOCK) as u64, vec![round; BLOCK]);
            queue.submit(&Op::Write { offset, data }, tag);
        }
        queue.kick();
        daemon.take_over(&options);
        assert!(frontend.queue(0).drain().iter().all(|done| done.ret == 0));
        for tag in 0..8_u64 {
            assert_eq!(read(frontend, tag * BLOCK as u64), Ok(vec![round; BLOCK]));
        }
        assert_eq!(frontend.queue(0).run(&Op::Flush).ret, 0);
    }
    assert!(daemon.terminate().status.success());
}

#[test]
fn disks_on_servers_are_taken_over() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(1 << 20);
    let _server = qemu_nbd(dir.path(), &[]);
    let mut daemon = start(dir, "", &["--hand-over", HAND_OVER, "--sandbox", "auto"]);
    let mut frontend = connect(&daemon, 1, 16);
    take_over(&mut daemon, &mut frontend, &allowed("", &["--sandbox", "auto"]));
}

#[test]
fn the_new_process_serves_the_disk_of_a_killed_one() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(1 << 20);
    let _server = qemu_nbd(dir.path(), &[]);
    let failing = ["--hand-over", HAND_OVER, "--fail-take-over", "parking"];
    let mut daemon = start(dir, "", &[&failing[..], &["--sandbox", "auto"]].concat());
    let mut frontend = connect(&daemon, 1, 16);
    assert_eq!(write(&mut frontend, 0, 1), 0);
    let options = allowed("", &["--sandbox", "auto"]);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    daemon.take_over_from_killed(&options);
    drop(frontend);
    // Its requests complete when the connector of the killed process has ended.
    let mut frontend = connect(&daemon, 1, 16);
    assert_eq!(read(&mut frontend, 0), Ok(vec![1; BLOCK]));
    assert_eq!(write(&mut frontend, 0, 2), 0);
    assert_eq!(read(&mut frontend, 0), Ok(vec![2; BLOCK]));
    assert!(daemon.terminate().status.success());
}

#[test]
fn encrypted_disks_are_taken_over() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(1 << 20);
    let files = dir.path().join("tls");
    Authority::new().fill(&files, &["localhost"]);
    let object = format!(
        "tls-creds-x509,id=s,dir={},endpoint=server,verify-peer=on",
        files.display()
    );
    let _server = qemu_nbd(dir.path(), &["--object", &object, "--tls-creds=s"]);
    let before = ["--object", "tls-creds-x509,id=tls0,dir=tls,endpoint=client"];
    let node = ",tls-creds=tls0,tls-hostname=localhost";
    let more = ["--hand-over", HAND_OVER, "--sandbox", "auto"];
    let mut daemon = start_after(dir, &before, node, &more);
    let mut frontend = connect(&daemon, 1, 16);
    let before = [&before[..], &["--sandbox", "auto"]].concat();
    take_over(&mut daemon, &mut frontend, &allowed(node, &before));
}

#[test]
fn a_flush_of_the_new_process_covers_earlier_writes() {
    if !has("nbdkit") {
        return;
    }
    let dir = directory(1 << 20);
    // Without this the server does not promise that a flush over one connection covers others. It notes each flush.
    let script = format!("flush=echo flush >> {}/log", dir.path().display());
    let options = [
        "eval",
        "get_size=echo 1048576",
        "pread=dd if=/dev/zero bs=$3 count=1 status=none",
        "pwrite=cat >/dev/null",
        "can_write=exit 0",
        "can_flush=exit 0",
        &script,
    ];
    let _server = nbdkit(dir.path(), &options);
    let mut daemon = start(dir, "", &["--hand-over", HAND_OVER]);
    let mut frontend = connect(&daemon, 1, 16);
    assert_eq!(write(&mut frontend, 0, 1), 0);
    daemon.take_over(&["--sandbox", "off"]);
    // One ahead, and one when no request is in flight any more.
    let log = fs::read_to_string(daemon.dir().join("log")).expect("the server's log");
    assert_eq!(log.lines().count(), 2, "{log}");
}

#[test]
fn the_old_process_keeps_a_disk_whose_server_is_not_allowed() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = directory(1 << 20);
    let mut server = qemu_nbd(dir.path(), &[]);
    let mut daemon = start(dir, "", &["--hand-over", HAND_OVER, "--sandbox", "auto"]);
    let mut frontend = connect(&daemon, 1, 16);
    let exit = daemon.fail_take_over(&["--sandbox", "auto"]);
    assert!(exit.output.contains("beside --take-over"), "{}", exit.output);
    let options = allowed("", &["--sandbox", "auto"]);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    for point in ["made", "restored", "taken"] {
        let failing = [&options[..], &["--fail-take-over", point]].concat();
        assert!(daemon.fail_take_over(&failing).output.contains(point));
        assert_eq!(write(&mut frontend, 0, 2), 0, "{point}");
    }
    let stored = fs::read(image(&daemon)).expect("the image");
    assert!(stored[..BLOCK] == [2; BLOCK]);
    server.signal(libc::SIGKILL);
    server.wait();
    let exit = daemon.fail_take_over(&options);
    assert!(exit.output.contains("NBD server"), "{}", exit.output);
}
