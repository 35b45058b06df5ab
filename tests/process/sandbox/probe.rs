//! A process that puts on the sandbox of one kind of thread and tries something.
//!
//! Tests have threads, and a sandbox cannot be taken off: so a test runs its own binary again, with one ignored test as
//! its body, and that forks for every attempt.

use std::io;

use vhost_user_blk::sandbox::{Keep, Mode, Sandbox, ThreadKind};

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The attempt killed the process (SIGSYS).
    Killed,
    /// The attempt failed with this errno.
    Failed(i32),
    /// The attempt succeeded, or ended the process in another way.
    Done,
}

/// Exit status of a child whose attempt was done; an error number is a status as it is.
const DONE: i32 = 0;

/// Puts this process into the complete sandbox.
pub(crate) fn confined() -> Sandbox {
    Sandbox::new(Mode::On, Keep::default()).expect("a sandbox")
}

/// Returns what happens to a thread of this kind that makes this attempt.
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

/// Runs `body` in a child process and returns the exit status.
pub(crate) fn in_child(body: impl FnOnce() -> i32) -> Outcome {
    // SAFETY: this process has no other thread that could hold a lock.
    match unsafe { libc::fork() } {
        0 => {
            let status = body();
            // SAFETY: ends the process, without what the parent has registered for its own end.
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
    if libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS {
        return Outcome::Killed;
    }
    match libc::WEXITSTATUS(status) {
        _ if libc::WIFSIGNALED(status) => Outcome::Done,
        DONE => Outcome::Done,
        errno => Outcome::Failed(errno),
    }
}
