//! A daemon inside its sandbox still does its whole job, with no rights left.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::socket::is_root;
use testkit::daemon::{Daemon, IMAGE, SOCKET};
use testkit::frontend::{Done, Frontend, Op, Queue, all_features};
use testkit::loop_device::LoopDevice;
use testkit::process::{threads, wait_for};
use testkit::target::image;
use testkit::vm::Vm;

const MIB: usize = 1 << 20;

/// Checks that every thread has the filters of its kind, and no rights.
///
/// `steady`: the pool has workers from the start, which do not inherit an IOThread's filter.
fn assert_confined(daemon: &Daemon, steady: bool) {
    // A worker that an IOThread has just created gets its own filter a moment later.
    let threads = wait_for("the filters of each thread", || {
        Some(threads(daemon.pid()))
            .filter(|threads| threads.iter().all(|thread| has_its_filters(thread, steady)))
    });
    assert!(threads.len() >= 3, "{threads:#?}");
    for thread in threads {
        let name = &thread["Name"];
        for (field, expected) in [("Seccomp", "2"), ("NoNewPrivs", "1")] {
            assert_eq!(thread[field], expected, "{field} of {name}");
        }
        let sets = ["CapInh", "CapPrm", "CapEff", "CapAmb", "CapBnd"];
        // Only root can empty the last set, which has no effect without new privileges.
        for set in &sets[..if is_root() { 5 } else { 4 }] {
            assert_eq!(thread[*set], "0000000000000000", "{set} of {name}");
        }
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).expect("limits");
    let core = limits.lines().find(|line| line.starts_with("Max core file size"));
    let core: Vec<_> = core.expect("a limit").split_whitespace().collect();
    assert_eq!(core[4..6], ["0", "0"], "core files");
}

/// Two filters refuse, one kills and one allows. A system call with conditions runs all of them, so there should be no more, but a
/// worker has those of its creator.
fn has_its_filters(thread: &BTreeMap<String, String>, steady: bool) -> bool {
    let filters = thread["Seccomp_filters"].as_str();
    let created_inside = thread["Name"].starts_with("worker") && !(steady && filters == "4");
    filters == if created_inside { "5" } else { "4" }
}

/// Bytes of each request.
const LEN: usize = 8192;
/// Requests in flight: enough for many workers.
const DEPTH: usize = 64;

/// Executes every kind of request, on two queues.
pub(crate) fn exercise(socket: &Path, name: &str) {
    let mut frontend = Frontend::connect(socket, 2, DEPTH, all_features()).expect("connect");
    for index in 0..2 {
        let queue = frontend.queue(index);
        let offset = |slot: usize| (index * MIB + slot * LEN) as u64;
        let fill = |slot: usize| 1 + slot.to_le_bytes()[0];
        let writes = (0..DEPTH).map(|slot| {
            let (offset, data) = (offset(slot), vec![fill(slot); LEN]);
            (slot, Op::Write { offset, data })
        });
        run_all(queue, writes, name);
        for op in ranges(offset(0)) {
            let done = queue.run(&op);
            // The driver is not offered what the storage does not support.
            let is_fine = done.ret == 0 || done.ret == -libc::ENOTSUP;
            assert!(is_fine, "{op:?}, {name}: {}", done.ret);
        }
        let reads = (1..DEPTH).map(|slot| {
            let (offset, len) = (offset(slot), LEN);
            (slot, Op::Read { offset, len })
        });
        for done in run_all(queue, reads, name) {
            let stored = done.data.iter().all(|&byte| byte == fill(done.tag));
            assert!(stored || name == "null", "data of {}, {name}", done.tag);
        }
    }
}

fn run_all(queue: &mut Queue, ops: impl Iterator<Item = (usize, Op)>, name: &str) -> Vec<Done> {
    ops.for_each(|(tag, op)| queue.submit(&op, tag));
    queue.kick();
    let all = queue.drain();
    assert!(all.iter().all(|done| done.ret == 0), "{name}");
    all
}

/// Returns the requests that are not reads or writes, for 8 KiB from `offset` on.
fn ranges(offset: u64) -> [Op; 5] {
    let len = 4096;
    let [zeroes, unmapped] =
        [(offset, false), (offset + len, true)].map(|(offset, unmap)| Op::WriteZeroes { offset, len, unmap });
    [
        Op::Flush,
        Op::Discard { offset, len },
        zeroes,
        unmapped,
        Op::Flush,
    ]
}

/// Makes a directory on the file system of the build, which supports O_DIRECT.
fn on_disk() -> tempfile::TempDir {
    let dir = tempfile::TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("make a directory");
    fs::write(dir.path().join(IMAGE), vec![0; 4 * MIB]).expect("write an image");
    dir
}

const QUEUES: [&str; 6] = ["--sandbox", "on", "--num-queues", "2", "--iothreads", "2"];

#[test]
fn every_engine_and_thread_works_inside() {
    for engine in [
        &["--aio", "auto"][..],
        &["--aio", "threads"],
        &["--aio", "io_uring"],
        &["--aio", "threads", "--thread-pool-min", "4"],
        &["--aio", "auto", "--direct"],
        &["--aio", "threads", "--direct"],
        &["--aio", "io_uring", "--direct"],
        &["--aio", "native", "--direct"],
    ] {
        let mut daemon = Daemon::start_in(on_disk(), &[&QUEUES, engine].concat());
        exercise(&daemon.socket(), &engine.join(" "));
        assert_confined(&daemon, engine.contains(&"--thread-pool-min"));
        // Each of these has a code path of its own: statistics, sizes, the next frontend.
        assert!(daemon.count("total", "requests") > 200, "{}", daemon.output());
        daemon.signal(libc::SIGHUP);
        exercise(&daemon.socket(), &engine.join(" "));
        let exit = daemon.terminate();
        assert!(exit.status.success(), "{engine:?}: {:?}", exit);
        assert!(!daemon.socket().exists(), "{engine:?} left its socket");
    }
}

#[test]
fn a_disk_of_nothing_is_served_inside() {
    let dir = tempfile::tempdir().expect("make a directory");
    let args = [&["--socket-path", SOCKET, "--null", "4M"], &QUEUES[..]].concat();
    let mut daemon = Daemon::start_with(dir, &args);
    exercise(&daemon.socket(), "null");
    assert!(daemon.terminate().status.success());
}

#[test]
fn a_block_device_is_served_and_resized_inside() {
    let dir = on_disk();
    let Some(device) = LoopDevice::over(&dir.path().join(IMAGE)) else {
        return;
    };
    for direct in [&[][..], &["--direct"], &["--direct", "--aio", "native"]] {
        let socket = tempfile::tempdir().expect("make a directory");
        let args = [
            &["--socket-path", SOCKET, "--blk-file", device.path()],
            &QUEUES[..],
            direct,
        ]
        .concat();
        let mut daemon = Daemon::start_with(socket, &args);
        exercise(&daemon.socket(), &format!("loop device {direct:?}"));
        assert_confined(&daemon, false);
        let seen = daemon.output().matches("resized").count();
        let file = fs::File::options()
            .write(true)
            .open(dir.path().join(IMAGE))
            .expect("open the image");
        let len = file.metadata().expect("its size").len();
        file.set_len(len + MIB as u64).expect("grow the image");
        device.losetup("--set-capacity");
        daemon.signal(libc::SIGHUP);
        daemon.wait_for(
            |daemon| daemon.output().matches("resized").count() > seen,
            "see the new size",
        );
        assert!(daemon.terminate().status.success());
    }
}

/// The kernel resumes interrupted waits with a system call of its own.
#[test]
fn a_stopped_daemon_goes_on() {
    let mut daemon = Daemon::start(&image(), &["--sandbox", "on"]);
    let mut vm = Vm::start(&daemon, 1);
    for _ in 0..3 {
        daemon.signal(libc::SIGSTOP);
        let stopped = |thread: &BTreeMap<String, String>| thread["State"].starts_with('T');
        daemon.wait_for(|daemon| threads(daemon.pid()).iter().all(stopped), "stop");
        daemon.signal(libc::SIGCONT);
        assert_eq!(vm.read_sector(0, 9), [9; 512]);
    }
    assert!(daemon.is_alive());
}

#[test]
fn a_sandbox_that_only_logs_serves_as_well() {
    let daemon = Daemon::start(&image(), &["--sandbox", "log"]);
    assert_eq!(Vm::start(&daemon, 1).read_sector(0, 9), [9; 512]);
    assert_confined(&daemon, false);
}

#[test]
fn without_a_sandbox_the_log_says_so() {
    let mut daemon = Daemon::start(&image(), &["--sandbox", "off"]);
    daemon.wait_for(|daemon| daemon.output().contains("no sandbox"), "say so");
    assert!(
        threads(daemon.pid())
            .iter()
            .all(|thread| thread["Seccomp"] == "0")
    );
}
