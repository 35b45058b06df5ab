//! Discards wait for writes in flight to the clusters that they free. Otherwise, such a write could hit the next owner of
//! a cluster.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::{Command, Stdio};

use testkit::daemon::binary;
use testkit::frontend::{Frontend, Op, all_features};
use testkit::preload;
use testkit::process::{Process, threads, wait_for};

use super::support::{check_clean, create, directory_in_memory, expected, qemu_io};

const CLUSTER: u64 = 64 << 10;
/// Number of consecutive checks without a change after which a process counts as at rest.
const LOOKS: usize = 25;

/// Waits until all threads of a process sleep and go on sleeping.
fn wait_for_rest(pid: u32) {
    let mut seen = Vec::new();
    let mut same = 0;
    wait_for("threads at rest", || {
        let threads = threads(pid);
        let sleep = threads.iter().all(|thread| thread["State"].starts_with('S'));
        let switches: Vec<_> = threads
            .iter()
            .map(|thread| thread["voluntary_ctxt_switches"].clone())
            .collect();
        same = if sleep && switches == seen { same + 1 } else { 0 };
        seen = switches;
        (same >= LOOKS).then_some(())
    });
}

fn serve(dir: &Path) -> Option<(Process, Frontend)> {
    let library = preload::build("tests/qcow2/waiting/gate.c", dir)?;
    let gate = dir.join("gate");
    let made = Command::new("mkfifo").arg(&gate).status().expect("run mkfifo");
    assert!(made.success());
    let mut command = Command::new(binary());
    command
        .args([
            "--socket-path",
            "sock",
            "--blk-file",
            "image",
            "--format",
            "qcow2",
        ])
        // With `--aio threads`, a stopped write blocks a worker and not the IOThread. Without a sandbox, the library
        // may make system calls that the daemon itself does not make.
        .args(["--aio", "threads", "--sandbox", "off"])
        .current_dir(dir)
        .env("LD_PRELOAD", library)
        .env("GATE", gate)
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let (daemon, ()) = Process::start("vhost-user-blk", &mut command, |_| ());
    let connect = || Frontend::connect(&dir.join("sock"), 1, 8, all_features()).ok();
    Some((daemon, wait_for("the daemon's socket", connect)))
}

#[test]
fn discards_wait_for_writes_in_flight() {
    let Some(dir) = directory_in_memory() else { return };
    let dir = dir.path();
    create(dir, "", &["image", "4M"]);
    qemu_io(dir, "image", &["write -P 7 0 1M"]);
    let Some((mut daemon, mut frontend)) = serve(dir) else {
        return;
    };
    let queue = frontend.queue(0);
    let data = b"STOP".repeat(1024);
    queue.submit(&Op::Write { offset: 4096, data }, 0);
    queue.kick();
    let entered = dir.join("gate.entered");
    wait_for("the write", || entered.exists().then_some(()));
    let discard = Op::Discard {
        offset: 0,
        len: CLUSTER,
    };
    queue.submit(&discard, 1);
    queue.kick();
    wait_for_rest(daemon.pid());
    assert_eq!(queue.reap().len(), 0, "the discard did not wait for the write");
    // Opened without waiting: the reader is there.
    drop(
        OpenOptions::new()
            .write(true)
            .open(dir.join("gate"))
            .expect("open the gate"),
    );
    assert!(queue.drain().iter().all(|done| done.ret == 0));
    let read = queue.run(&Op::Read {
        offset: 0,
        len: 64 << 10,
    });
    assert!(read.data.iter().all(|byte| *byte == 0), "the discard came last");
    assert_eq!(queue.run(&Op::Flush).ret, 0);
    drop(frontend);
    daemon.signal(libc::SIGTERM);
    daemon.wait();
    check_clean(dir, "image");
    assert!(
        expected(dir, "image")[64 << 10..1 << 20]
            .iter()
            .all(|byte| *byte == 7)
    );
    fs::remove_file(dir.join("sock")).ok();
}
