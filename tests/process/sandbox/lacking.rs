//! Kernels that lack a part of the sandbox.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter, sock_filter};

use super::serving::exercise;
use testkit::daemon::{IMAGE, SOCKET, binary};
use testkit::frontend::{Frontend, all_features};
use testkit::process::{Process, threads, wait_for};

/// Starts a daemon that these filters apply to from the start.
fn start_under(filters: Vec<BpfProgram>, options: &[&str]) -> (tempfile::TempDir, Process) {
    let dir = tempfile::tempdir().expect("make a directory");
    fs::write(dir.path().join(IMAGE), vec![0; 4 << 20]).expect("write the image");
    let log = fs::File::create(dir.path().join("err")).expect("make a log");
    let mut command = Command::new(binary());
    command
        .args(["--socket-path", SOCKET, "--blk-file", IMAGE])
        .args(options)
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stderr(log);
    let apply = move || {
        let mut filters = filters.iter();
        filters.try_for_each(|filter| apply_filter(filter).map_err(|_| io::ErrorKind::Other.into()))
    };
    // SAFETY: system calls and no allocation between fork and exec.
    unsafe { command.pre_exec(apply) };
    let (daemon, ()) = Process::start("vhost-user-blk", &mut command, |_| ());
    (dir, daemon)
}

/// Starts a daemon that sees a kernel without this system call.
fn without(call: libc::c_long, options: &[&str]) -> (tempfile::TempDir, Process) {
    failing(call, libc::ENOSYS, options)
}

/// Starts a daemon whose kernel refuses a system call.
fn failing(call: libc::c_long, errno: libc::c_int, options: &[&str]) -> (tempfile::TempDir, Process) {
    let machine = std::env::consts::ARCH
        .try_into()
        .expect("an architecture with filters");
    let action = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new([(call, Vec::new())].into(), SeccompAction::Allow, action, machine);
    let filter: BpfProgram = filter.expect("a filter").try_into().expect("a program");
    start_under(vec![filter], options)
}

fn said(dir: &Path) -> String {
    fs::read_to_string(dir.join("err")).unwrap_or_default()
}

#[test]
fn missing_kernel_features_are_logged_or_refused() {
    for (call, lacking) in [
        (libc::SYS_landlock_create_ruleset, "Landlock"),
        (libc::SYS_seccomp, "seccomp"),
    ] {
        let (dir, _daemon) = without(call, &[]);
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
        let ended = end_or_serving(&mut daemon, dir.path());
        assert!(ended.is_some_and(|status| !status.success()), "it starts");
        let log = said(dir.path());
        assert_eq!(log.lines().count(), 1, "{log}");
        assert!(log.contains("--sandbox on") && log.contains(lacking), "{log}");
        assert!(!dir.path().join(SOCKET).exists(), "it left its socket");
    }
}

/// Waits until the daemon ends or serves its disk. Returns the exit status if it has ended.
fn end_or_serving(daemon: &mut Process, dir: &Path) -> Option<ExitStatus> {
    wait_for("the end or a served disk", || match daemon.ended() {
        Some(status) => Some(Some(status)),
        None => said(dir).contains("serving").then_some(None),
    })
}

#[test]
fn a_kernel_without_nowait_reads_is_refused() {
    // Before 5.8 an eventfd has no non-blocking `preadv2`; before 4.6 there is no `preadv2`.
    for errno in [libc::EOPNOTSUPP, libc::ENOSYS] {
        let (dir, mut daemon) = failing(libc::SYS_preadv2, errno, &[]);
        let ended = end_or_serving(&mut daemon, dir.path());
        let log = said(dir.path());
        assert_eq!(ended.and_then(|status| status.code()), Some(1), "{log}");
        assert_eq!(log.lines().count(), 1, "{log}");
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
        assert!(
            log.contains("Linux 5.8 or newer is needed") && log.contains(release.trim()),
            "{log}"
        );
        assert!(!dir.path().join(SOCKET).exists(), "it made a socket");
    }
}

/// Returns a filter of this many instructions that allows everything.
fn padding(instructions: usize) -> BpfProgram {
    let instruction = |code: u32, k| sock_filter {
        code: u16::try_from(code).expect("an instruction"),
        jt: 0,
        jf: 0,
        k,
    };
    // Each instruction jumps to the next one. The kernel evaluates them in advance and does not run them for each call.
    let mut filter = vec![instruction(libc::BPF_JMP | libc::BPF_JA, 0); instructions - 1];
    filter.push(instruction(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW));
    filter
}

/// The kernel's limit on the instructions of all filters of one thread.
const MOST: usize = 1 << 15;
/// The kernel's limit on the instructions of one filter.
const LONGEST: usize = 4096;

/// Starts a daemon with room for at most `room` instructions, less a few that the kernel adds to each filter.
fn with_room(room: usize, options: &[&str]) -> (tempfile::TempDir, Process) {
    let mut filters = vec![padding(LONGEST); MOST / LONGEST - 1];
    filters.push(padding(LONGEST - room));
    start_under(filters, options)
}

/// Returns the one log line about filters.
fn about_filters(log: &str) -> &str {
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("filter")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    lines[0]
}

/// Starts a daemon with just enough room for the filters of all threads except workers. A worker needs more room,
/// because it has its creator's filter as well.
///
/// A daemon with less room must end at once and say why.
fn without_room_for_workers(options: &[&str]) -> (tempfile::TempDir, Process) {
    for room in (300..LONGEST).step_by(20) {
        let (dir, mut daemon) = with_room(room, options);
        let connected = || Frontend::connect(&dir.path().join(SOCKET), 1, 4, all_features()).is_ok();
        let serves = wait_for("the start or the end", || match daemon.ended() {
            Some(_) => Some(false),
            None => connected().then_some(true),
        });
        if serves {
            return (dir, daemon);
        }
        assert!(!daemon.wait().success(), "it could not start");
        let log = said(dir.path());
        assert!(about_filters(&log).contains("allocate memory"), "{log}");
        assert!(!dir.path().join(SOCKET).exists(), "it left its socket: {log}");
    }
    panic!("it does not start at all");
}

#[test]
fn workers_fall_back_to_their_creators_filter() {
    let options = ["--num-queues", "2", "--aio", "threads"];
    let (dir, daemon) = without_room_for_workers(&options);
    exercise(&dir.path().join(SOCKET), "workers without filters");
    let threads = threads(daemon.pid());
    let workers = threads
        .iter()
        .filter(|thread| thread["Name"].starts_with("worker"));
    let filters: Vec<&str> = workers.map(|worker| &*worker["Seccomp_filters"]).collect();
    assert!(filters.len() > 1, "{threads:#?}");
    // The filters that the daemon was started with, and the IOThread's.
    let expected = (MOST / LONGEST + 4).to_string();
    assert!(filters.iter().all(|filters| *filters == expected), "{filters:?}");
    let log = said(dir.path());
    let warning = about_filters(&log);
    assert!(
        warning.contains("worker thread's") && warning.contains("its creator's"),
        "{log}"
    );
}
