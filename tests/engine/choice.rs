//! The choice of an engine for a disk.

use std::thread;

use vhost_user_blk::engine::{BlockNode, Choice};

use crate::support::{Image, On, message};
use testkit::skip::skipped;

const MIB: u64 = 1 << 20;

fn chosen(choice: Choice, node: impl Into<BlockNode>) -> String {
    match node.into().plan(choice) {
        Ok(plan) => plan.to_string(),
        Err(error) => message(&error),
    }
}

/// Runs `test` on a thread where `io_uring_setup` fails with `errno`. The filter ends with the thread.
fn without_io_uring(errno: i32, test: impl FnOnce() + Send) {
    let word = |code: u32, jt, jf, k| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt,
        jf,
        k,
    };
    let setup = u32::try_from(libc::SYS_io_uring_setup).unwrap();
    let mut filter = [
        // The number is the first word of `struct seccomp_data`.
        word(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        word(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, setup),
        word(
            libc::BPF_RET | libc::BPF_K,
            0,
            0,
            libc::SECCOMP_RET_ERRNO | errno.unsigned_abs(),
        ),
        word(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let body = move || {
        let program = libc::sock_fprog {
            len: 4,
            filter: filter.as_mut_ptr(),
        };
        // SAFETY: takes numbers only.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
        // SAFETY: the program and the filter that it points to outlive the call, in which the kernel copies them.
        let rc = unsafe {
            libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            )
        };
        assert_eq!(rc, 0);
        test();
    };
    thread::scope(|scope| scope.spawn(body).join().unwrap());
}

#[test]
fn auto_uses_io_uring_only_with_o_direct() {
    let (disk, memory) = (Image::filled(On::Disk, MIB, 0), Image::filled(On::Tmpfs, MIB, 0));
    assert_eq!(chosen(Choice::Auto, disk.open()), "inline+threads");
    assert_eq!(chosen(Choice::Auto, memory.open()), "inline+threads");
    if chosen(Choice::IoUring, disk.open()) != "io_uring" {
        return skipped("no io_uring here");
    }
    assert_eq!(chosen(Choice::Auto, disk.open_direct()), "io_uring");
}

#[test]
fn auto_falls_back_to_threads_without_io_uring() {
    let image = Image::filled(On::Disk, MIB, 0);
    for (errno, reason) in [
        (libc::EPERM, "kernel.io_uring_disabled"),
        (libc::ENOSYS, "the kernel does not support it"),
        (libc::ENOMEM, "ulimit -l"),
    ] {
        without_io_uring(errno, || {
            assert_eq!(chosen(Choice::Auto, image.open_direct()), "threads");
            let refusal = chosen(Choice::IoUring, image.open_direct());
            assert!(
                refusal.starts_with("no io_uring: ") && refusal.contains(reason),
                "{refusal}"
            );
        });
    }
}

#[test]
fn kernel_engines_need_a_disk_with_a_file() {
    let null = || BlockNode::null(MIB);
    assert_eq!(chosen(Choice::Auto, null()), "inline");
    assert_eq!(chosen(Choice::Threads, null()), "threads");
    assert!(chosen(Choice::IoUring, null()).contains("need a file"));
    assert!(chosen(Choice::Native, null()).contains("need a file"));
    let later = || BlockNode::null_aio(MIB, std::time::Duration::from_millis(1));
    assert_eq!(chosen(Choice::Auto, later()), "timer");
    for choice in [Choice::Threads, Choice::IoUring, Choice::Native] {
        assert!(chosen(choice, later()).contains("completed by a timer"));
    }
}

#[test]
fn native_is_refused_without_o_direct() {
    let image = Image::filled(On::Disk, MIB, 0);
    let refusal = chosen(Choice::Native, image.open());
    assert!(refusal.contains("without O_DIRECT"), "{refusal}");
    assert_eq!(chosen(Choice::Native, image.open_direct()), "native");
}

#[test]
fn an_explicit_engine_is_used_alone() {
    let image = Image::filled(On::Disk, MIB, 0);
    for file in [image.open(), image.open_direct()] {
        assert_eq!(chosen(Choice::Threads, file), "threads");
    }
}
