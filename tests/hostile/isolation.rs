//! Disks that are slow, stuck, or in hostile hands, beside one that is used all the time on the same IOThread.

use std::os::unix::fs::symlink;

use serde_json::json;
use testkit::daemon::{Daemon, IMAGE};
use testkit::frontend::{Frontend, Op, all_features};
use testkit::full::SmallDisk;
use testkit::fuse::StalledFile;
use testkit::process::wait_for;
use testkit::skip::skipped;
use testkit::target::Disks;

const MIB: u64 = 1 << 20;

/// Requests that a stuck disk gets: more than workers may exist, and more than the kernel takes without help.
const STUCK: usize = 100;

fn stalled(size: u64) -> Option<StalledFile> {
    StalledFile::mount(size)
        .inspect_err(|error| skipped(format_args!("no FUSE file system can be mounted: {error}")))
        .ok()
}

/// Serves a stuck file beside a neighbour, with these options for both nodes.
fn beside_a_stuck_disk(options: &[&str]) {
    let Some(file) = stalled(MIB) else { return };
    let disks = Disks::new(options);
    beside(&file, disks);
}

fn beside(file: &StalledFile, mut disks: Disks) {
    symlink(file.path(), disks.dir.path().join(IMAGE)).expect("link to the file");
    for option in ["aio", "cache"] {
        if let Some(value) = disks.node.get(option) {
            disks.neighbours_node[option] = value.clone();
        }
    }
    disks.node["locking"] = json!("off");
    file.let_go();
    let daemon = disks.serve();
    file.stall();
    let _end = file.let_go_at_the_end();
    let mut frontend = connect(&daemon);
    for tag in 0..STUCK {
        let read = Op::Read {
            offset: 4096 * tag as u64,
            len: 4096,
        };
        frontend.queue(0).submit(&read, tag);
    }
    frontend.queue(0).kick();
    wait_for("a read of the stuck disk", || file.has_reader().then_some(()));
    for _ in 0..20 {
        daemon.check_neighbour();
    }
    assert_eq!(frontend.queue(0).reap(), [], "it is stuck");
    file.let_go();
    let done = frontend.queue(0).drain();
    assert!(done.iter().all(|done| done.ret == 0 && done.data == [1; 4096]));
    assert_eq!(done.len(), STUCK);
}

fn connect(daemon: &Daemon) -> Frontend {
    Frontend::connect(&daemon.socket(), 1, STUCK, all_features()).expect("connect")
}

#[test]
fn a_stuck_disk_leaves_workers_to_others() {
    for max in ["64", "2", "1"] {
        beside_a_stuck_disk(&["--aio", "threads", "--thread-pool-max", max]);
    }
    beside_a_stuck_disk(&["--aio", "threads", "--direct"]);
    beside_a_stuck_disk(&[]);
}

#[test]
fn a_stuck_file_system_holds_up_no_other() {
    // The kernel has a few threads for requests to such files, in which they wait.
    for options in [&["--direct"][..], &["--direct", "--aio", "io_uring"]] {
        let (Some(file), Some(neighbour)) = (stalled(MIB), stalled(MIB / 4)) else {
            return;
        };
        neighbour.let_go();
        let mut disks = Disks::new(options);
        symlink(neighbour.path(), disks.dir.path().join("neighbour.img")).expect("link to the file");
        disks.neighbours_node["locking"] = json!("off");
        beside(&file, disks);
    }
}

#[test]
fn a_frozen_file_system_holds_up_no_other() {
    for options in [&[][..], &["--aio", "threads"]] {
        let Some(small) = SmallDisk::mount_ext4(16 * MIB) else {
            return;
        };
        small.make_image(MIB);
        let disks = Disks::new(options);
        symlink(small.image(), disks.dir.path().join(IMAGE)).expect("link to the image");
        let daemon = disks.serve();
        let mut frontend = connect(&daemon);
        let frozen = small.freeze();
        let write = Op::Write {
            offset: 4096,
            data: vec![1; 4096],
        };
        frontend.queue(0).submit(&write, 0);
        frontend.queue(0).kick();
        for _ in 0..20 {
            daemon.check_neighbour();
        }
        assert_eq!(frontend.queue(0).reap(), [], "it waits for the thaw");
        drop(frozen);
        let done = frontend.queue(0).drain();
        assert!(done.iter().all(|done| done.ret == 0));
    }
}
