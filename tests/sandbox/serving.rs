//! A daemon inside its sandbox: it does all that it is there for, with no rights left.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::daemon::{BINARY, Daemon, IMAGE, SOCKET};
use crate::common::frontend::{Frontend, Op, all_features};
use crate::common::process::{Process, wait_for};
use crate::common::target::image;
use crate::common::vm::Vm;

const MIB: usize = 1 << 20;

/// The lines of `/proc/PID/task/*/status`, thread by thread.
pub(crate) fn threads(pid: u32) -> Vec<BTreeMap<String, String>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .expect("list threads")
        .flatten();
    // One that has just ended has none any more.
    let texts = tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
    let fields = |text: String| {
        let fields = text.lines().filter_map(|line| line.split_once(':'));
        fields
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect()
    };
    texts.map(fields).collect()
}

/// Nothing that a thread could do more than its filters say.
fn assert_confined(daemon: &Daemon) {
    let threads = threads(daemon.pid());
    assert!(threads.len() >= 3, "{threads:#?}");
    for thread in threads {
        let name = &thread["Name"];
        for (field, expected) in [("Seccomp", "2"), ("NoNewPrivs", "1")] {
            assert_eq!(thread[field], expected, "{field} of {name}");
        }
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(thread[set], "0000000000000000", "{set} of {name}");
        }
        let filters: u32 = thread["Seccomp_filters"].parse().expect("a number");
        assert!(
            filters <= 4,
            "{filters} filters of {name}: each system call runs them all"
        );
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).expect("limits");
    let core = limits.lines().find(|line| line.starts_with("Max core file size"));
    let core: Vec<_> = core.expect("a limit").split_whitespace().collect();
    assert_eq!(core[4..6], ["0", "0"], "core files");
}

/// Every kind of request, deep enough for many workers.
fn exercise(socket: &Path, name: &str) {
    let mut frontend = Frontend::connect(socket, 2, 64, all_features()).expect("connect");
    for index in 0..2 {
        let queue = frontend.queue(index);
        let base = (index * MIB) as u64;
        let offset = |slot: usize| base + (slot * 8192) as u64;
        for slot in 0..64_usize {
            let data = vec![1 + slot.to_le_bytes()[0]; 8192];
            queue.submit(
                &Op::Write {
                    offset: offset(slot),
                    data,
                },
                slot,
            );
        }
        queue.kick();
        assert!(queue.drain().iter().all(|done| done.ret == 0), "writes, {name}");
        for op in [
            Op::Flush,
            Op::Discard {
                offset: offset(0),
                len: 4096,
            },
            Op::WriteZeroes {
                offset: offset(1),
                len: 4096,
                unmap: false,
            },
            Op::WriteZeroes {
                offset: offset(2),
                len: 4096,
                unmap: true,
            },
            Op::Flush,
        ] {
            let done = queue.run(&op);
            // What the storage does not have at all the driver is not offered.
            assert!(
                done.ret == 0 || done.ret == -libc::ENOTSUP,
                "{op:?}, {name}: {}",
                done.ret
            );
        }
        for slot in 8..64 {
            queue.submit(
                &Op::Read {
                    offset: offset(slot),
                    len: 8192,
                },
                slot,
            );
        }
        queue.kick();
        for done in queue.drain() {
            assert_eq!(done.ret, 0, "read, {name}");
            let stored = name == "null"
                || done
                    .data
                    .iter()
                    .all(|&byte| byte == 1 + done.tag.to_le_bytes()[0]);
            assert!(stored, "data of {}, {name}", done.tag);
        }
    }
}

/// A directory on the file system of the build, which has O_DIRECT.
fn on_disk() -> tempfile::TempDir {
    let dir = tempfile::TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("make a directory");
    fs::write(dir.path().join(IMAGE), vec![0; 4 * MIB]).expect("write an image");
    dir
}

const QUEUES: [&str; 6] = ["--sandbox", "on", "--num-queues", "2", "--iothreads", "2"];

#[test]
fn every_engine_serves_inside_and_no_thread_is_outside() {
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
        assert_confined(&daemon);
        // Each of these has a path of its own: statistics, sizes, the next frontend.
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
fn a_block_device_is_served_inside_and_its_new_size_is_seen() {
    let dir = on_disk();
    let Some(device) = LoopDevice::over(&dir.path().join(IMAGE)) else {
        eprintln!("skipped: no loop devices");
        return;
    };
    for direct in [&[][..], &["--direct"], &["--direct", "--aio", "native"]] {
        let socket = tempfile::tempdir().expect("make a directory");
        let args = [
            &["--socket-path", SOCKET, "--blk-file", &device.0],
            &QUEUES[..],
            direct,
        ]
        .concat();
        let mut daemon = Daemon::start_with(socket, &args);
        exercise(&daemon.socket(), &format!("loop device {direct:?}"));
        assert_confined(&daemon);
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

/// A loop device over a file; detached when dropped.
struct LoopDevice(String);

impl LoopDevice {
    fn over(file: &Path) -> Option<Self> {
        let made = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output();
        let made = made.ok().filter(|made| made.status.success())?;
        Some(Self(String::from_utf8_lossy(&made.stdout).trim().to_owned()))
    }

    fn losetup(&self, option: &str) {
        let done = Command::new("losetup").arg(option).arg(&self.0).status();
        assert!(done.expect("run losetup").success(), "losetup {option}");
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        self.losetup("--detach");
    }
}

/// The kernel goes on with waits that were interrupted by means of a system call of its own.
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

/// Starts a daemon whose kernel has no such system call, as far as it can see.
fn without(call: libc::c_long, options: &[&str]) -> (tempfile::TempDir, Process) {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
    use std::os::unix::process::CommandExt;
    let machine = std::env::consts::ARCH
        .try_into()
        .expect("an architecture with filters");
    let action = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let filter = SeccompFilter::new([(call, Vec::new())].into(), SeccompAction::Allow, action, machine);
    let filter: BpfProgram = filter.expect("a filter").try_into().expect("a program");
    let dir = tempfile::tempdir().expect("make a directory");
    fs::write(dir.path().join(IMAGE), image()).expect("write the image");
    let log = fs::File::create(dir.path().join("err")).expect("make a log");
    let mut command = Command::new(BINARY);
    command
        .args(["--socket-path", SOCKET, "--blk-file", IMAGE])
        .args(options)
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stderr(log);
    // SAFETY: two system calls and no allocation between fork and exec.
    unsafe { command.pre_exec(move || apply_filter(&filter).map_err(|_| std::io::ErrorKind::Other.into())) };
    let (daemon, ()) = Process::start("vhost-user-blk", &mut command, |_| ());
    (dir, daemon)
}

#[test]
fn a_kernel_that_lacks_a_part_is_told_about_once_or_refused() {
    for (call, lacking) in [
        (libc::SYS_landlock_create_ruleset, "Landlock"),
        (libc::SYS_seccomp, "seccomp"),
    ] {
        let (dir, _daemon) = without(call, &[]);
        let said = |dir: &Path| fs::read_to_string(dir.join("err")).unwrap_or_default();
        wait_for("the socket", || dir.path().join(SOCKET).exists().then_some(()));
        let log = wait_for("the log", || {
            Some(said(dir.path())).filter(|log| log.contains("serving"))
        });
        let warnings: Vec<_> = log.lines().filter(|line| line.contains("WARN")).collect();
        assert_eq!(warnings.len(), 1, "{log}");
        assert!(
            warnings[0].contains("sandbox is incomplete") && warnings[0].contains(lacking),
            "{log}"
        );
        Frontend::connect(&dir.path().join(SOCKET), 1, 4, all_features()).expect("it serves");

        let (dir, mut daemon) = without(call, &["--sandbox", "on"]);
        assert!(!daemon.wait().success(), "it starts");
        let log = said(dir.path());
        assert_eq!(log.lines().count(), 1, "{log}");
        assert!(log.contains("--sandbox on") && log.contains(lacking), "{log}");
        assert!(!dir.path().join(SOCKET).exists(), "it left its socket");
    }
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
