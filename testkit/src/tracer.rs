//! Kills a process right after one of its system calls has failed, before the process learns of it.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::mem;
use std::ptr;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use crate::process::wait_for;

/// A stop with this signal is at the entry or the exit of a system call.
const SYSCALL_STOP: i32 = libc::SIGTRAP | 0x80;

/// Traces a process and kills it as soon as one of these system calls fails in any of its threads.
///
/// Returns the tracing thread, whose result is the number of the failed call.
pub fn kill_at_failure(pid: u32, calls: &'static [libc::c_long]) -> JoinHandle<libc::c_long> {
    let pid = libc::pid_t::try_from(pid).expect("a pid fits");
    let (attached, is_attached) = mpsc::channel();
    // Only the thread that attaches can trace.
    let tracer = thread::spawn(move || {
        let threads = attach(pid);
        let mut tracer = Tracer {
            calls,
            entered: HashMap::new(),
        };
        // The tracer sees a thread's calls only after the thread has stopped once.
        threads.for_each(|thread| {
            wait_for("a thread to stop", || next_stop(thread));
            resume(thread, 0);
        });
        attached.send(()).expect("the test waits");
        let call = wait_for("a system call to fail", || tracer.next_failure());
        // SAFETY: takes numbers only. The process exists: one of its threads has stopped.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
        call
    });
    is_attached.recv().expect("the process can be traced");
    tracer
}

struct Tracer {
    calls: &'static [libc::c_long],
    /// The system call that each thread entered last.
    entered: HashMap<libc::pid_t, libc::c_long>,
}

impl Tracer {
    /// Handles one stop of a thread, if there is one. Returns the number of a failed call. The thread that made the
    /// failed call stays stopped.
    fn next_failure(&mut self) -> Option<libc::c_long> {
        let (thread, status) = next_stop(-1)?;
        let signal = libc::WSTOPSIG(status);
        let is_event = status >> 16 != 0;
        if signal == SYSCALL_STOP && self.has_failed(thread) {
            return self.entered.get(&thread).copied();
        }
        let signal = if signal == SYSCALL_STOP || is_event {
            0
        } else {
            signal
        };
        resume(thread, signal);
        None
    }

    fn has_failed(&mut self, thread: libc::pid_t) -> bool {
        // SAFETY: all-zero bytes are a valid `struct ptrace_syscall_info`.
        let mut info: libc::ptrace_syscall_info = unsafe { mem::zeroed() };
        let len = size_of_val(&info);
        // SAFETY: `info` has room for `len` bytes.
        let got = unsafe { libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, thread, len, &raw mut info) };
        assert!(got > 0, "{}", io::Error::last_os_error());
        match info.op {
            libc::PTRACE_SYSCALL_INFO_ENTRY => {
                // SAFETY: `op` says that this part of the union is valid.
                let number = unsafe { info.u.entry.nr };
                self.entered
                    .insert(thread, number.try_into().expect("a number of a system call"));
                false
            }
            libc::PTRACE_SYSCALL_INFO_EXIT => {
                // SAFETY: as above.
                let is_error = unsafe { info.u.exit.is_error } != 0;
                is_error
                    && self
                        .entered
                        .get(&thread)
                        .is_some_and(|call| self.calls.contains(call))
            }
            _ => false,
        }
    }
}

/// Attaches to all threads of a process, and asks each to stop once.
fn attach(pid: libc::pid_t) -> impl Iterator<Item = libc::pid_t> {
    let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL;
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .expect("list threads")
        .flatten();
    let threads: Vec<libc::pid_t> = tasks
        .map(|task| {
            task.file_name()
                .to_str()
                .expect("a number")
                .parse()
                .expect("a number")
        })
        .collect();
    for &thread in &threads {
        request(libc::PTRACE_SEIZE, thread, options);
        request(libc::PTRACE_INTERRUPT, thread, 0);
    }
    threads.into_iter()
}

/// Lets a stopped thread continue until it enters or leaves a system call.
fn resume(thread: libc::pid_t, signal: libc::c_int) {
    request(libc::PTRACE_SYSCALL, thread, signal);
}

fn request(request: libc::c_uint, thread: libc::pid_t, data: libc::c_int) {
    let no_address = ptr::null_mut::<libc::c_void>();
    let data = libc::c_long::from(data);
    // SAFETY: these requests take numbers only.
    let done = unsafe { libc::ptrace(request, thread, no_address, data) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}

/// Returns a traced thread that has stopped, if any, and its status. `thread` selects one thread, or all with -1.
fn next_stop(thread: libc::pid_t) -> Option<(libc::pid_t, libc::c_int)> {
    let mut status = 0;
    // Leaves out the children of other threads: those threads reap their own children.
    let flags = libc::__WALL | libc::__WNOTHREAD | libc::WNOHANG;
    // SAFETY: `status` has room for the answer.
    let stopped = unsafe { libc::waitpid(thread, &raw mut status, flags) };
    (stopped > 0 && libc::WIFSTOPPED(status)).then_some((stopped, status))
}
