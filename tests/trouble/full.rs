//! A full disk, as the guest sees it under each policy.

use crate::{EIO, NO_ROOM, ROOM_AGAIN, connect, engines, read, said, write};
use testkit::daemon::Daemon;
use testkit::frontend::{Frontend, Op, all_features};
use testkit::full::SmallDisk;
use testkit::process::wait_for;

const KIB: usize = 1 << 10;
const BLOCK: usize = 64 * KIB;
const WRITES: usize = 16;
/// A worker that helps is late now and then.
const ROUNDS: usize = 20;

/// Starts a daemon on a disk with space for half of the writes.
fn half_full(disk: &SmallDisk, options: &[&str]) -> Daemon {
    disk.make_image((4 * WRITES * BLOCK) as u64);
    disk.fill((WRITES / 2 * BLOCK) as u64);
    disk.daemon(options)
}

fn data(i: usize) -> Vec<u8> {
    (0..BLOCK)
        .map(|n| ((n / 512 + 7 * i) % 251).to_le_bytes()[0])
        .collect()
}

fn submit_writes(frontend: &mut Frontend) {
    let queue = frontend.queue(0);
    for i in 0..WRITES {
        queue.submit(&write(i * BLOCK, &data(i)), i);
    }
    queue.kick();
}

/// Waits until everything in flight is held. Returns the completions so far.
fn wait_until_held(daemon: &mut Daemon, frontend: &mut Frontend) -> Vec<usize> {
    let mut answered = Vec::new();
    wait_for("the rest to be held", || {
        let done = frontend.queue(0).reap();
        assert!(done.iter().all(|done| done.ret == 0), "{done:?}");
        answered.extend(done.into_iter().map(|done| done.tag));
        (frontend.queue(0).in_flight() as u64 == daemon.count("total", "held")).then_some(())
    });
    answered
}

#[test]
fn a_full_disk_only_delays_the_guest() {
    if let Some(disk) = SmallDisk::mount(4 << 20) {
        makes_the_guest_wait(&disk);
    }
}

#[test]
fn a_full_ext4_disk_only_delays_the_guest() {
    if let Some(disk) = SmallDisk::mount_ext4(16 << 20) {
        makes_the_guest_wait(&disk);
    }
}

fn makes_the_guest_wait(disk: &SmallDisk) {
    disk.make_image(4096);
    for options in engines(&disk.image()) {
        let mut daemon = half_full(disk, options);
        let mut frontend = connect(&daemon, WRITES + 1);
        submit_writes(&mut frontend);
        let answered = wait_until_held(&mut daemon, &mut frontend);
        assert!((1..WRITES).contains(&answered.len()), "{options:?}: {answered:?}");

        // Requests that need no space still complete.
        let queue = frontend.queue(0);
        for &i in &answered {
            queue.submit(&read(i * BLOCK, BLOCK), WRITES);
            queue.kick();
            let (done, _) = queue.wait();
            assert!(
                done[0].data == data(i) && done[0].tag == WRITES,
                "{options:?}: {i}"
            );
        }
        queue.submit(&Op::Flush, WRITES);
        queue.kick();
        assert_eq!(queue.wait().0[0].ret, 0, "{options:?}");
        assert_eq!((said(&daemon, NO_ROOM), said(&daemon, ROOM_AGAIN)), (1, 0));

        disk.make_room();
        let queue = frontend.queue(0);
        let done = queue.drain();
        assert_eq!(done.len(), WRITES - answered.len(), "{options:?}");
        assert!(done.iter().all(|done| done.ret == 0), "{options:?}: {done:?}");
        for i in 0..WRITES {
            assert!(
                queue.run(&read(i * BLOCK, BLOCK)).data == data(i),
                "{options:?}: {i}"
            );
        }
        assert_eq!(
            (daemon.count("total", "held"), daemon.count("total", "errors")),
            (0, 0)
        );
        assert_eq!(daemon.count("total", "held_ever"), done.len() as u64);
        daemon.wait_for(|d| said(d, ROOM_AGAIN) == 1, "say that there is room");
    }
}

#[test]
fn held_requests_that_a_worker_helps_with_complete() {
    let Some(disk) = SmallDisk::mount(4 << 20) else {
        return;
    };
    for _ in 0..ROUNDS {
        let mut daemon = half_full(&disk, &["--request-merging", "off"]);
        let mut frontend = connect(&daemon, WRITES);
        submit_writes(&mut frontend);
        let answered = wait_until_held(&mut daemon, &mut frontend);
        disk.make_room();
        let done = frontend.queue(0).drain();
        assert_eq!(done.len(), WRITES - answered.len());
        assert!(done.iter().all(|done| done.ret == 0), "{done:?}");
    }
}

#[test]
fn write_zeroes_and_stable_writes_wait_too() {
    let Some(disk) = SmallDisk::mount(4 << 20) else {
        return;
    };
    disk.make_image(4096);
    for options in engines(&disk.image()) {
        disk.make_image(4 << 20);
        disk.fill(0);
        let mut daemon = disk.daemon(options);
        // The driver has neither FLUSH nor CONFIG_WCE, so every write must be stable.
        let features = all_features() & !(1 << 9 | 1 << 11);
        let mut frontend = Frontend::connect(&daemon.socket(), 1, 4, features).expect("connect");
        let zeroes = Op::WriteZeroes {
            offset: 0,
            len: BLOCK as u64,
            unmap: false,
        };
        let queue = frontend.queue(0);
        queue.submit(&zeroes, 0);
        queue.submit(&write(BLOCK, &data(1)), 1);
        queue.kick();
        assert!(
            wait_until_held(&mut daemon, &mut frontend).is_empty(),
            "{options:?}"
        );
        disk.make_room();
        let done = frontend.queue(0).drain();
        assert!(
            done.len() == 2 && done.iter().all(|done| done.ret == 0),
            "{options:?}: {done:?}"
        );
        assert!(frontend.queue(0).run(&read(BLOCK, BLOCK)).data == data(1));
    }
}

#[test]
fn the_report_policy_reports_a_full_disk() {
    let Some(disk) = SmallDisk::mount(4 << 20) else {
        return;
    };
    disk.make_image(4096);
    for options in engines(&disk.image()) {
        let mut daemon = half_full(&disk, &[options, &["--werror", "report"]].concat());
        let mut frontend = connect(&daemon, WRITES);
        submit_writes(&mut frontend);
        let done = frontend.queue(0).drain();
        let failed = done.iter().filter(|done| done.ret == EIO).count();
        let good = done.iter().filter(|done| done.ret == 0).count();
        assert!(
            failed > 0 && good > 0 && failed + good == WRITES,
            "{options:?}: {done:?}"
        );
        assert_eq!(daemon.count("total", "errors"), failed as u64);
        let line = "request failed; the guest gets an I/O error";
        assert_eq!(said(&daemon, line), 1, "{options:?}: {}", daemon.output());
        assert!(said(&daemon, "No space left on device") == 1 && said(&daemon, "op=\"write\"") == 1);
        disk.make_room();
    }
}

#[test]
fn the_ignore_policy_hides_write_errors() {
    let Some(disk) = SmallDisk::mount(4 << 20) else {
        return;
    };
    disk.make_image(4096);
    for options in engines(&disk.image()) {
        let mut daemon = half_full(&disk, &[options, &["--werror", "ignore"]].concat());
        let mut frontend = connect(&daemon, WRITES);
        submit_writes(&mut frontend);
        let done = frontend.queue(0).drain();
        assert!(done.iter().all(|done| done.ret == 0), "{options:?}: {done:?}");
        assert!(daemon.count("total", "ignored") > 0 && daemon.count("total", "errors") == 0);
        assert_eq!(said(&daemon, "ignored: the guest is told that all is well"), 1);
        disk.make_room();
    }
}
