//! The filters of each kind of thread: every system call, and the arguments that make a difference.

use std::ffi::CStr;
use std::ptr;
use std::thread;

use testkit::process::run_alone;
use vhost_user_blk::sandbox::ThreadKind::{
    self, Connector, Control, Helper, IoThread, Main, Manager, Monitor, Worker,
};
use vhost_user_blk::sandbox::{Sandbox, allowed, applies, refused};

use super::probe::Outcome::{Done, Failed, Killed, Signal};
use super::probe::{attempt, confined, in_child};

/// More system calls than any kernel has.
const SYSTEM_CALLS: i64 = 600;
/// System calls that the kernel allows in spite of a filter: uretprobe and uprobe (x86-64). They work only at the
/// places where the kernel has put them.
const UNFILTERED: [i64; 2] = [335, 336];
/// Added to a system call number, this selects the x32 variant.
const X32: i64 = 0x4000_0000;
const PASSWD: &CStr = c"/etc/passwd";

fn call(number: i64, arguments: [i64; 6]) -> libc::c_long {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the process was made for this call and ends with it.
    unsafe { libc::syscall(number, a, b, c, d, e, f) }
}

fn address<T>(of: *const T) -> i64 {
    of.expose_provenance().cast_signed() as i64
}

#[test]
fn an_unlisted_system_call_kills_the_process() {
    run_alone("sandbox::filters::body_of_every_system_call");
}

/// Arguments of all ones satisfy no condition.
#[test]
#[ignore = "needs a process of its own"]
fn body_of_every_system_call() {
    let sandbox = confined();
    for kind in ThreadKind::ALL {
        for number in (0..SYSTEM_CALLS).filter(|number| !UNFILTERED.contains(number)) {
            // It would go on wherever the bytes on the stack say. `abort` below makes this call after a signal.
            if number == libc::SYS_rt_sigreturn {
                continue;
            }
            let found = attempt(&sandbox, kind, || call(number, [-1; 6]));
            let free = allowed(kind).any(|call| call.number() == number && call.condition().is_empty());
            let refusal = refused().find(|(call, _)| call.number() == number && applies(call, kind));
            match refusal {
                Some((call, errno)) => assert_eq!(found, Failed(errno), "{} of {kind}", call.name()),
                None if !free => assert_eq!(found, Killed, "system call {number} of {kind}"),
                None => assert!(
                    matches!(found, Done | Failed(_)),
                    "system call {number} of {kind}: {found:?}"
                ),
            }
            if cfg!(target_arch = "x86_64") {
                let found = attempt(&sandbox, kind, || call(number | X32, [-1; 6]));
                assert_eq!(found, Killed, "x32 system call {number} of {kind}");
            }
        }
    }
}

#[test]
fn every_thread_denies_what_intruders_want() {
    run_alone("sandbox::filters::body_of_what_intruders_want");
}

#[test]
#[ignore = "needs a process of its own"]
fn body_of_what_intruders_want() {
    let sandbox = confined();
    for kind in ThreadKind::ALL {
        let open = [i64::from(libc::AT_FDCWD), address(PASSWD.as_ptr()), 0, 0, 0, 0];
        let found = attempt(&sandbox, kind, || call(libc::SYS_openat, open));
        assert_eq!(found, Failed(libc::EACCES), "open a file, {kind}");
        for (what, number, arguments) in wishes() {
            let needed = [
                // An IOThread that is added later makes its ring before it gets a filter of its own.
                (Manager, libc::SYS_io_uring_setup),
                // Sockets are the helper's work; it can bind them to names beneath its directories only.
                (Helper, libc::SYS_socket),
                // It connects to one server, and Landlock leaves it that one only.
                (Connector, libc::SYS_socket),
            ];
            if needed.contains(&(kind, number)) {
                continue;
            }
            let mut all = [0; 6];
            all[..arguments.len()].copy_from_slice(&arguments);
            let found = attempt(&sandbox, kind, || call(number, all));
            assert_eq!(found, Killed, "{what}, {kind}");
        }
    }
}

/// Returns calls that would succeed without a filter, or fail for reasons that an intruder could remove.
fn wishes() -> Vec<(&'static str, i64, Vec<i64>)> {
    // SAFETY: takes nothing.
    let parent = i64::from(unsafe { libc::getppid() });
    let code = i64::from(libc::PROT_READ | libc::PROT_EXEC);
    let anonymous = i64::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let [unix, stream] = [libc::AF_UNIX, libc::SOCK_STREAM].map(i64::from);
    let [dumpable, namespace, child] =
        [libc::PR_SET_DUMPABLE, libc::CLONE_NEWUSER, libc::SIGCHLD].map(i64::from);
    let (attach, memory, shell) = (16, address(PASSWD.as_ptr()), address(c"/bin/sh".as_ptr()));
    vec![
        ("run a program", libc::SYS_execve, vec![shell]),
        ("fork", libc::SYS_clone, vec![child]),
        ("trace a process", libc::SYS_ptrace, vec![attach, parent]),
        ("read a process", libc::SYS_process_vm_readv, vec![parent]),
        ("signal a process", libc::SYS_kill, vec![parent]),
        ("signal a thread", libc::SYS_tgkill, vec![parent, parent]),
        ("make a socket", libc::SYS_socket, vec![unix, stream]),
        (
            "send to an address",
            libc::SYS_sendto,
            vec![0, memory, 1, 0, memory, 16],
        ),
        ("map code", libc::SYS_mmap, vec![0, 4096, code, anonymous, -1]),
        ("make data code", libc::SYS_mprotect, vec![0, 4096, code]),
        ("be dumped", libc::SYS_prctl, vec![dumpable, 1]),
        ("type into a terminal", libc::SYS_ioctl, vec![0, 0x5412, memory]),
        ("become root", libc::SYS_setuid, vec![0]),
        ("enter a namespace", libc::SYS_unshare, vec![namespace]),
        ("make a ring", libc::SYS_io_uring_setup, vec![1, memory]),
        ("load a program into the kernel", libc::SYS_bpf, vec![]),
    ]
}

extern "C" fn return_at_once(_signal: libc::c_int) {}

#[test]
fn conditions_let_pass_what_is_needed() {
    run_alone("sandbox::filters::body_of_conditions");
}

#[test]
#[ignore = "needs a process of its own"]
fn body_of_conditions() {
    let sandbox = confined();
    let data = i64::from(libc::PROT_READ | libc::PROT_WRITE);
    let anonymous = i64::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let not_a_file = Failed(libc::EBADF);
    for kind in ThreadKind::ALL {
        let found = attempt(&sandbox, kind, || {
            call(libc::SYS_mmap, [0, 4096, data, anonymous, -1, 0])
        });
        assert_eq!(found, Done, "mmap, {kind}");
        let flags = i64::from(libc::F_GETFD);
        let found = attempt(&sandbox, kind, || call(libc::SYS_fcntl, [-1, flags, 0, 0, 0, 0]));
        assert_eq!(found, not_a_file, "F_GETFD, {kind}");
        let found = attempt(&sandbox, kind, || call(libc::SYS_sendto, [-1, 0, 0, 0, 0, 0]));
        assert_eq!(found, not_a_file, "sendto, {kind}");
        // An abort must look like an abort, not like a violation. The filters contain the process's pid, so the child
        // makes a sandbox of its own. `abort` raises the signal a second time after its handler has returned.
        let found = in_child(|| {
            confined().enter(kind).expect("enter the sandbox");
            let handler = return_at_once as extern "C" fn(libc::c_int);
            // SAFETY: the handler does nothing.
            unsafe { libc::signal(libc::SIGABRT, handler as libc::sighandler_t) };
            std::process::abort()
        });
        assert_eq!(found, Signal(libc::SIGABRT), "abort, {kind}");
    }
    for (kind, request, expected) in [
        (Worker, 0x8008_1272, not_a_file),
        (IoThread, 0x8008_1272, not_a_file),
        (Worker, 0x1277, not_a_file),
        (IoThread, 0x1277, not_a_file),
        (Main, 0x1277, Killed),
        (Main, 0x8008_1272, Killed),
        (Control, 0x1277, Killed),
        (Control, 0x8008_1272, Killed),
        (Monitor, 0x1277, Killed),
        (Monitor, 0x8008_1272, Killed),
    ] {
        let found = attempt(&sandbox, kind, || {
            call(libc::SYS_ioctl, [-1, request, 0, 0, 0, 0])
        });
        assert_eq!(found, expected, "ioctl {request:#x}, {kind}");
    }
}

#[test]
fn sandboxed_threads_can_create_threads_and_end() {
    run_alone("sandbox::filters::body_of_threads");
}

/// An IOThread creates workers, which create more workers.
#[test]
#[ignore = "needs a process of its own"]
fn body_of_threads() {
    let sandbox = confined();
    let found = in_child(|| {
        sandbox.enter(IoThread).expect("enter the sandbox");
        beget(&sandbox, 200);
        0
    });
    // If every generation added a filter, there would be too many for the kernel.
    assert_eq!(found, Done);
}

fn beget(sandbox: &Sandbox, generations: u32) {
    let next = sandbox.clone();
    let body = move || {
        if generations > 0 {
            beget(&next, generations - 1);
        }
    };
    let thread = sandbox.spawn(Worker, format!("worker-{generations}"), body);
    thread.expect("create a thread").join().expect("it ends");
}

#[test]
fn a_panic_is_caught_inside_with_a_backtrace() {
    run_alone("sandbox::filters::body_of_panics");
}

#[test]
#[ignore = "needs a process of its own"]
fn body_of_panics() {
    // SAFETY: this process has one thread.
    unsafe { std::env::set_var("RUST_BACKTRACE", "full") };
    let sandbox = confined();
    for kind in ThreadKind::ALL {
        let found = in_child(|| {
            sandbox.enter(kind).expect("enter the sandbox");
            let panicked = std::panic::catch_unwind(|| panic!("as asked for"));
            i32::from(panicked.is_ok())
        });
        assert_eq!(found, Done, "{kind}");
    }
}

#[test]
fn memory_is_allocated_and_freed_inside() {
    run_alone("sandbox::filters::body_of_memory");
}

#[test]
#[ignore = "needs a process of its own"]
fn body_of_memory() {
    let sandbox = confined();
    for kind in [Control, IoThread, Worker] {
        let found = in_child(|| {
            let inside = sandbox.clone();
            // A second thread has a malloc arena of its own.
            let thread = thread::spawn(move || {
                inside.enter(kind).expect("enter the sandbox");
                let mut blocks: Vec<Vec<u8>> = Vec::new();
                for size in (4..21).map(|shift| 1 << shift) {
                    blocks.push(vec![1; size]);
                    let doubled = blocks.last().map_or(0, |block| 2 * block.len());
                    blocks.iter_mut().for_each(|block| block.resize(doubled, 2));
                }
                blocks.iter().map(|block| ptr::from_ref(block).addr()).max()
            });
            i32::from(thread.join().is_err())
        });
        assert_eq!(found, Done, "{kind}");
    }
}
