//! A process that enters the sandbox of one kind of thread and attempts an operation.
//!
//! Tests run on threads of one process, and a sandbox cannot be left again. So a test runs its own binary again with
//! one ignored test as its body, and that body forks for every attempt.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use testkit::process::run_alone;
use vhost_user_blk::sandbox::{Keep, Mode, Sandbox, ThreadKind};

/// The result of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The attempt killed the process (SIGSYS).
    Killed,
    /// The attempt failed with this errno.
    Failed(i32),
    /// The attempt succeeded.
    Done,
    /// The attempt ended with a panic.
    Panicked,
    /// Another signal than SIGSYS ended the process.
    Signal(i32),
}

/// Exit status of a child whose attempt succeeded. After a failed attempt, the exit status is the errno.
const DONE: i32 = 0;
/// Exit status of a child that has panicked. It is larger than every errno.
const PANICKED: i32 = 254;

/// Puts this process into the complete sandbox.
pub(crate) fn confined() -> Sandbox {
    Sandbox::new(Mode::On, Keep::default()).expect("a sandbox")
}

/// Makes an attempt on a thread of this kind and returns the result.
pub(crate) fn attempt(
    sandbox: &Sandbox,
    kind: ThreadKind,
    attempt: impl FnOnce() -> libc::c_long,
) -> Outcome {
    in_child(|| {
        sandbox.enter(kind).expect("enter the sandbox");
        match attempt() {
            -1 => io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO),
            _ => DONE,
        }
    })
}

/// Runs `body` in a child process and returns the result.
pub(crate) fn in_child(body: impl FnOnce() -> i32) -> Outcome {
    // SAFETY: this process has no other thread that could hold a lock.
    match unsafe { libc::fork() } {
        0 => {
            // A panic must not go on to the parent's copy of the test.
            let status = catch_unwind(AssertUnwindSafe(body)).unwrap_or(PANICKED);
            // SAFETY: `_exit` ends the process without running the parent's exit handlers.
            unsafe { libc::_exit(status) }
        }
        child => outcome_of(child),
    }
}

fn outcome_of(child: libc::pid_t) -> Outcome {
    assert!(child > 0, "fork: {}", io::Error::last_os_error());
    let mut status = 0;
    // SAFETY: the status is written to a live integer.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(waited, child, "{}", io::Error::last_os_error());
    if libc::WIFSIGNALED(status) {
        return match libc::WTERMSIG(status) {
            libc::SIGSYS => Outcome::Killed,
            signal => Outcome::Signal(signal),
        };
    }
    assert!(libc::WIFEXITED(status), "wait status {status:#x}");
    match libc::WEXITSTATUS(status) {
        DONE => Outcome::Done,
        PANICKED => Outcome::Panicked,
        errno => Outcome::Failed(errno),
    }
}

#[test]
fn each_end_of_a_process_is_told_apart() {
    run_alone("sandbox::probe::body_of_ends");
}

#[test]
#[ignore = "needs a process of its own"]
fn body_of_ends() {
    // SAFETY: a signal to this process itself.
    let raise = |signal| unsafe { libc::raise(signal) };
    for signal in [libc::SIGABRT, libc::SIGTERM, libc::SIGKILL] {
        assert_eq!(in_child(|| raise(signal)), Outcome::Signal(signal));
    }
    assert_eq!(in_child(|| raise(libc::SIGSYS)), Outcome::Killed);
    assert_eq!(in_child(|| panic!("as asked for")), Outcome::Panicked);
    assert_eq!(in_child(|| libc::EBADF), Outcome::Failed(libc::EBADF));
    assert_eq!(in_child(|| DONE), Outcome::Done);
}
