//! Forbidden system calls are named before the process ends, except fatal ones.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::ptr;

use testkit::daemon::{IMAGE, SOCKET, binary};
use testkit::frontend::{Frontend, Op, all_features};
use testkit::preload;
use testkit::process::{Process, run_alone, wait_for};
use vhost_user_blk::sandbox::{Sandbox, ThreadKind};

use super::probe::Outcome::Killed;
use super::probe::{confined, in_child};

/// No thread may make this call, and it is not fatal.
const UNLISTED: i64 = libc::SYS_times;

/// Returns what a confined process of one thread says that makes a call, which kills it.
fn last_words(
    sandbox: &Sandbox,
    kind: ThreadKind,
    mut stderr: &File,
    call: impl FnOnce() -> libc::c_long,
) -> String {
    let begin = stderr.stream_position().expect("a position");
    let found = in_child(|| {
        // SAFETY: the process was made for this attempt; both descriptors are open.
        assert!(unsafe { libc::dup2(stderr.as_raw_fd(), libc::STDERR_FILENO) } >= 0);
        // SAFETY: the kernel copies the name.
        unsafe { libc::prctl(libc::PR_SET_NAME, c"somebody".as_ptr()) };
        sandbox.enter(kind).expect("enter the sandbox");
        call();
        0
    });
    assert_eq!(found, Killed, "{kind}");
    let mut said = String::new();
    stderr.seek(SeekFrom::Start(begin)).expect("go back");
    stderr.read_to_string(&mut said).expect("read it");
    said
}

#[test]
fn forbidden_calls_are_named() {
    run_alone("sandbox::named::body_of_named_calls");
}

#[test]
#[ignore = "needs a process of its own"]
fn body_of_named_calls() {
    let stderr = tempfile::tempfile().expect("make a file");
    let sandbox = confined();
    for kind in ThreadKind::ALL {
        let words = |call: &dyn Fn() -> libc::c_long| last_words(&sandbox, kind, &stderr, call);
        // SAFETY: takes a null pointer, and is not executed.
        let said = words(&|| unsafe { libc::syscall(UNLISTED, 0) });
        let told = format!("error: thread somebody has made system call {UNLISTED} (architecture 0x");
        assert!(
            said.starts_with(&told) && said.lines().count() == 1,
            "{kind}: {said}"
        );
        // SAFETY: null pointers; not executed.
        let said = words(&|| unsafe { libc::syscall(libc::SYS_execve, 0, 0, 0) });
        assert_eq!(said, "", "a fatal call of {kind}");
        // SAFETY: as above.
        let said = words(&|| unsafe { libc::syscall(libc::SYS_rt_sigaction, libc::SIGSYS, 0, 0, 8) });
        assert_eq!(said, "", "the handler, {kind}");
        let said = words(&|| {
            // SAFETY: all zeroes is a valid set.
            let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
            // SAFETY: the set is ours.
            unsafe { libc::sigfillset(&raw mut all) };
            // SAFETY: the kernel copies the set.
            unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const all, ptr::null_mut()) };
            // SAFETY: as above.
            unsafe { libc::syscall(UNLISTED, 0) }
        });
        assert_eq!(said, "", "a thread that blocks all signals, {kind}");
    }
}

#[test]
fn a_forbidden_call_of_a_library_is_named() {
    let dir = tempfile::tempdir().expect("make a directory");
    let Some(library) = preload::build("tests/process/sandbox/forbidden.c", dir.path()) else {
        return;
    };
    fs::write(dir.path().join(IMAGE), vec![0; 1 << 20]).expect("write the image");
    let log = dir.path().join("log");
    let mut command = Command::new(binary());
    command
        .args(["--socket-path", SOCKET, "--blk-file", IMAGE])
        .current_dir(dir.path())
        .env("LD_PRELOAD", library)
        .stdin(Stdio::null())
        .stderr(File::create(&log).expect("make a log"));
    let (mut daemon, ()) = Process::start("the daemon", &mut command, |_| ());
    let said = || fs::read_to_string(&log).unwrap_or_default();
    wait_for("the daemon", || said().contains("serving").then_some(()));
    let mut frontend = Frontend::connect(&dir.path().join(SOCKET), 1, 4, all_features()).expect("connect");
    let queue = frontend.queue(0);
    let data = vec![1; 4096];
    assert_eq!(queue.run(&Op::Write { offset: 0, data }).ret, 0);
    queue.submit(&Op::Flush, 0);
    queue.kick();
    assert_eq!(daemon.wait().signal(), Some(libc::SIGSYS), "{}", said());
    let told = format!(" has made system call {UNLISTED} (architecture 0x");
    assert!(said().contains(&told), "{}", said());
}
