//! The system calls that each kind of thread may make: one table, fixed at compile time.
//!
//! Hot calls are allowed by their number alone. The kernel decides these from a bitmap, without running a filter.
//! Arguments are checked only where a call is rare and could do harm. docs/security.md has this table too, and a test
//! compares the two.

use std::borrow::Cow;

use super::thread_kind::ThreadKind::{
    self, Ceph, Connector, Control, HandOver, Helper, IoThread, Main, Manager, Metrics, Monitor, Watchdog,
    Worker,
};

/// A system call and the threads that may make it.
#[derive(Debug)]
pub struct Call {
    /// The constant's name in the `libc` crate.
    pub(super) symbol: &'static str,
    pub(super) number: i64,
    /// The kinds of threads that may make the call.
    pub threads: &'static [ThreadKind],
    pub(super) condition: Condition,
}

/// A condition on a call's arguments.
#[derive(Debug)]
pub(super) enum Condition {
    /// Any arguments.
    None,
    /// A 32-bit argument is one of these values.
    Among(u8, &'static [(&'static str, u32)]),
    /// A 32-bit argument, masked with `mask`, equals `value`.
    Masked {
        argument: u8,
        mask: u32,
        value: u32,
        text: &'static str,
    },
    /// An argument is a null pointer.
    Null(u8, &'static str),
    /// An argument is the id of this process.
    OwnProcess(u8),
}

impl Call {
    /// Returns the call's name, as in the manual pages.
    pub fn name(&self) -> &'static str {
        self.symbol.trim_start_matches("SYS_")
    }

    /// Returns the call's number on this machine.
    pub fn number(&self) -> i64 {
        self.number
    }

    /// Describes the condition on the call's arguments. The text is empty if there is none.
    pub fn condition(&self) -> Cow<'static, str> {
        match &self.condition {
            Condition::None => "".into(),
            Condition::Among(_, values) => {
                let names: Vec<&str> = values.iter().map(|(name, _)| *name).collect();
                names.join(", ").into()
            }
            Condition::Masked { text, .. } | Condition::Null(_, text) => (*text).into(),
            Condition::OwnProcess(_) => "this process".into(),
        }
    }
}

macro_rules! calls {
    ($($threads:expr => [$($symbol:ident $(if $condition:expr)?),* $(,)?])*) => {
        &[$($(Call {
            symbol: stringify!($symbol),
            number: libc::$symbol,
            threads: $threads,
            condition: calls!(@condition $($condition)?),
        },)*)*]
    };
    (@condition) => { Condition::None };
    (@condition $condition:expr) => { $condition };
}

pub(super) use calls;

/// The condition that the argument is one of these constants.
macro_rules! among {
    ($argument:literal: $module:ident [$($name:ident),*]) => {
        Condition::Among($argument, &[$((stringify!($name), bits($module::$name as i128))),*])
    };
}

const ALL: &[ThreadKind] = &[
    Main, Control, IoThread, Worker, Monitor, Metrics, HandOver, Watchdog, Helper, Connector, Ceph,
];
const ALL_BUT_MAIN: &[ThreadKind] = &[
    Control, IoThread, Worker, Monitor, Metrics, HandOver, Watchdog, Connector, Ceph,
];
const ALL_BUT_WORKERS: &[ThreadKind] = &[
    Main, Control, IoThread, Monitor, Metrics, HandOver, Watchdog, Connector, Ceph,
];
const OF_A_DISK: &[ThreadKind] = &[Control, IoThread, Worker];
const DISK: &[ThreadKind] = &[IoThread, Worker];
const SOCKET: &[ThreadKind] = &[Main, Control];
const STREAMS: &[ThreadKind] = &[Main, Control, Metrics, Connector];
const UNLINKING: &[ThreadKind] = &[Main, Control, Helper];
const ACCEPTING: &[ThreadKind] = &[Control, Monitor, Metrics, HandOver, Connector];
const EVENTFDS: &[ThreadKind] = &[Control, IoThread, Worker, Watchdog];
const RECEIVING: &[ThreadKind] = &[Main, Control, IoThread, Monitor, HandOver, Helper, Connector];
const SENDING: &[ThreadKind] = &[Main, Control, HandOver, Helper, Connector, Ceph];
const WAITING: &[ThreadKind] = &[Control, IoThread, Ceph];
const CREATING: &[ThreadKind] = &[IoThread, Worker, Connector, Ceph];

/// Constants that the `libc` crate lacks, or does not have in the same type everywhere.
mod constant {
    pub(super) const BLKDISCARD: u32 = 0x1277;
    pub(super) const BLKGETSIZE64: u32 = 0x8008_1272;
    pub(super) const BLKIOOPT: u32 = 0x1279;
    pub(super) const BLKPBSZGET: u32 = 0x127b;
    pub(super) const BLKROGET: u32 = 0x125e;
    pub(super) const BLKSSZGET: u32 = 0x1268;
    pub(super) const CLONE_NEWTIME: i32 = 0x80;
    pub(super) const FIONBIO: u32 = 0x5421;
    pub(super) const IORING_REGISTER_BUFFERS2: u32 = 15;
    pub(super) const IORING_REGISTER_BUFFERS_UPDATE: u32 = 16;
    pub(super) const IORING_REGISTER_ENABLE_RINGS: u32 = 12;
    pub(super) const IORING_REGISTER_EVENTFD: u32 = 4;
    pub(super) const IORING_REGISTER_FILES: u32 = 2;
    pub(super) const IORING_REGISTER_RESTRICTIONS: u32 = 11;
    pub(super) const IORING_REGISTER_FILES_UPDATE: u32 = 6;
    pub(super) const IORING_REGISTER_PROBE: u32 = 8;
    pub(super) const PR_GET_NAME: i32 = 16;
    pub(super) const PR_SET_NAME: i32 = 15;
    pub(super) const PR_SET_VMA: i32 = 0x5356_4d41;
}

/// Returns the bits of an int or unsigned int that a call takes in a register.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the kernel uses only the lower 32 bits too"
)]
const fn bits(value: i128) -> u32 {
    value as u32
}

/// The condition of mmap and mprotect: they never make memory executable.
const NOT_EXECUTABLE: Condition = Condition::Masked {
    argument: 2,
    mask: bits(libc::PROT_EXEC as i128),
    value: 0,
    text: "without PROT_EXEC",
};

/// The flags for what a thread shares with its creator.
const SHARED: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM;

/// Flags that would make something other than a plain thread.
const SPECIAL: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | constant::CLONE_NEWTIME
    | libc::CLONE_PTRACE
    | libc::CLONE_UNTRACED
    | libc::CLONE_VFORK
    | libc::CLONE_PARENT
    | libc::CLONE_IO;

const A_THREAD: Condition = Condition::Masked {
    argument: 0,
    mask: bits((SHARED | SPECIAL) as i128),
    value: bits(SHARED as i128),
    text: "a thread, nothing else",
};

/// The allowed calls.
pub(super) static ALLOWED: &[Call] = calls! {
    // The log, eventfds, closing files.
    ALL => [SYS_read, SYS_write, SYS_writev, SYS_close]
    // The size and type of open files.
    ALL => [SYS_fstat, SYS_newfstatat, SYS_statx]
    // Memory: the allocator, the frontend's memory, stacks.
    ALL => [
        SYS_mmap if NOT_EXECUTABLE,
        SYS_mprotect if NOT_EXECUTABLE,
        SYS_munmap,
        SYS_mremap,
        SYS_madvise,
        SYS_brk,
    ]
    // Threads: locks, time, signals (whose handlers run on any thread), exit.
    ALL => [
        SYS_futex,
        SYS_sched_yield,
        SYS_clock_gettime,
        SYS_clock_nanosleep,
        SYS_getrandom,
        SYS_getpid,
        SYS_gettid,
        SYS_tgkill if Condition::OwnProcess(0),
        SYS_rt_sigaction,
        SYS_rt_sigprocmask,
        SYS_rt_sigreturn,
        SYS_restart_syscall,
        SYS_sigaltstack,
        SYS_sendto if Condition::Null(4, "without an address"),
        SYS_fcntl if among!(1: libc [F_GETFD]),
        SYS_prctl if among!(0: constant [PR_GET_NAME]),
        SYS_exit_group,
    ]
    ALL_BUT_MAIN => [SYS_exit]
    // New workers, and threads that encrypt, which start with the rights of their creators.
    CREATING => [
        SYS_clone if A_THREAD,
        SYS_set_robust_list,
        SYS_rseq,
        SYS_sched_getaffinity,
        SYS_prctl if among!(0: constant [PR_SET_NAME, PR_SET_VMA]),
    ]
    DISK => [
        SYS_seccomp if among!(0: libc [SECCOMP_SET_MODE_FILTER]),
    ]
    // Whether a job has slept. The IOThread runs jobs if no worker can be created.
    DISK => [SYS_getrusage]
    // The disk. Other threads ask these threads for a flush or for a new size.
    DISK => [
        SYS_preadv,
        SYS_pwritev,
        SYS_pwritev2,
        SYS_fallocate,
        SYS_lseek,
        SYS_mincore,
        SYS_fdatasync,
        SYS_syncfs,
        SYS_sync_file_range,
        SYS_fadvise64,
        SYS_ioctl if among!(1: constant [BLKDISCARD, BLKGETSIZE64]),
    ]
    OF_A_DISK => [SYS_fstatfs]
    // In-flight regions are made by control threads, and images grow with the clusters that workers allocate.
    OF_A_DISK => [SYS_ftruncate]
    EVENTFDS => [SYS_preadv2]
    // The event loop and its queues in the kernel, which were created earlier.
    WAITING => [SYS_epoll_pwait, SYS_epoll_ctl]
    &[IoThread] => [
        SYS_timerfd_settime,
        SYS_io_uring_enter,
        SYS_io_uring_register if among!(1: constant [
            IORING_REGISTER_FILES_UPDATE, IORING_REGISTER_BUFFERS_UPDATE
        ]),
        SYS_io_submit,
        SYS_io_getevents,
        SYS_io_destroy,
    ]
    // The frontend: connections, messages and the files sent with them.
    STREAMS => [SYS_recvfrom]
    UNLINKING => [SYS_unlinkat]
    ALL_BUT_WORKERS => [SYS_ppoll]
    ACCEPTING => [SYS_accept4]
    &[Metrics, HandOver, Connector] => [SYS_shutdown]
    RECEIVING => [SYS_recvmsg]
    SENDING => [SYS_sendmsg]
    &[Control] => [
        SYS_epoll_create1,
        SYS_dup3,
        SYS_getsockopt if among!(2: libc [SO_DOMAIN, SO_TYPE, SO_PEERCRED]),
        SYS_setsockopt if among!(2: libc [SO_PEEK_OFF]),
        SYS_ioctl if among!(1: libc [FIONREAD]),
        SYS_pread64,
        SYS_pwrite64,
        SYS_memfd_create,
        SYS_fcntl if among!(1: libc [
            F_DUPFD_CLOEXEC, F_OFD_GETLK, F_OFD_SETLK, F_ADD_SEALS, F_GET_SEALS
        ]),
    ]
    // Another process that takes over.
    &[Main, HandOver] => [SYS_fcntl if among!(1: libc [F_DUPFD_CLOEXEC])]
    // What a process that takes over was told still holds.
    &[Main] => [SYS_pipe2]
    &[HandOver] => [SYS_getsockopt if among!(2: libc [SO_PEERCRED])]
    // Descriptors that QMP clients have passed.
    &[Monitor] => [SYS_fcntl if among!(1: libc [F_DUPFD_CLOEXEC, F_GETFL])]
    // Disks and IOThreads that are added later: what threads need before they get filters of their own.
    &[Manager] => [
        SYS_eventfd2,
        SYS_timerfd_create,
        SYS_io_uring_setup,
        SYS_io_uring_register if among!(1: constant [
            IORING_REGISTER_FILES, IORING_REGISTER_EVENTFD, IORING_REGISTER_RESTRICTIONS,
            IORING_REGISTER_ENABLE_RINGS, IORING_REGISTER_BUFFERS2, IORING_REGISTER_PROBE
        ]),
        SYS_io_setup,
        SYS_sched_setaffinity,
        SYS_getsockname,
        SYS_getpeername,
        SYS_ioctl if among!(1: constant [BLKROGET, BLKIOOPT, BLKPBSZGET, BLKSSZGET, FIONBIO]),
        SYS_getsockopt if among!(2: libc [SO_ACCEPTCONN]),
        SYS_fcntl if among!(1: libc [F_SETFL]),
    ]
    // Images and sockets beneath the directories that Landlock leaves to the helper.
    &[Helper] => [
        SYS_openat2,
        SYS_flock,
        SYS_socket if among!(0: libc [AF_UNIX]),
        SYS_bind,
        SYS_listen,
        SYS_connect,
        SYS_getsockopt if among!(2: libc [SO_PEERCRED]),
        SYS_fchmod,
        SYS_fchmodat,
        SYS_fchownat,
    ]
    // Connections to the NBD server that this process was started for.
    &[Connector] => [
        SYS_socket if among!(0: libc [AF_UNIX, AF_INET, AF_INET6]),
        SYS_socketpair if among!(0: libc [AF_UNIX]),
        SYS_connect,
        SYS_getsockopt if among!(2: libc [SO_ERROR]),
        SYS_setsockopt if among!(2: libc [SO_KEEPALIVE, TCP_NODELAY]),
    ]
    // The threads of librbd: connections to monitors and OSDs, and event loops of their own.
    &[Ceph] => [
        SYS_socket if among!(0: libc [AF_INET, AF_INET6]),
        SYS_connect,
        SYS_shutdown,
        SYS_getsockname,
        SYS_getpeername,
        SYS_getsockopt if among!(2: libc [SO_ERROR]),
        SYS_setsockopt if among!(2: libc [SO_KEEPALIVE, SO_RCVBUF, TCP_NODELAY, SO_PRIORITY, IP_TOS]),
        SYS_epoll_create1,
        SYS_eventfd2,
        SYS_pipe2,
        SYS_timerfd_create,
        SYS_timerfd_settime,
        SYS_fcntl if among!(1: libc [F_GETFL, F_SETFL, F_SETFD]),
        SYS_lseek,
        SYS_uname,
        SYS_sysinfo,
    ]
};

/// The same calls under names that only older architectures have.
#[cfg(target_arch = "x86_64")]
pub(super) static ALLOWED_HERE: &[Call] = calls! {
    WAITING => [SYS_epoll_wait]
    SOCKET => [SYS_unlink]
    &[Ceph] => [SYS_epoll_create]
};

/// The same calls under names that only older architectures have: none here.
#[cfg(not(target_arch = "x86_64"))]
pub(super) static ALLOWED_HERE: &[Call] = &[];

/// Calls that fail instead of ending the process: libraries make them to probe for something they can do without.
pub(super) static REFUSED: &[(&[Call], i32)] = &[
    // Backtraces look for debug information, and the allocator for the machine's settings.
    (
        calls! { ALL => [SYS_openat, SYS_readlinkat, SYS_getcwd] },
        libc::EACCES,
    ),
    #[cfg(target_arch = "x86_64")]
    (calls! { ALL => [SYS_open, SYS_readlink] }, libc::EACCES),
    // The flags of clone3 are in memory, where no filter sees them. The C library then uses clone instead.
    (calls! { CREATING => [SYS_clone3] }, libc::ENOSYS),
];

/// Returns whether a rule is about threads of this kind. The filter of a thread applies to the threads that it creates as
/// well, so the manager has the rules of all kinds of its process.
pub(super) fn applies(call: &Call, kind: ThreadKind) -> bool {
    match kind {
        Manager => call
            .threads
            .iter()
            .any(|kind| !matches!(kind, Helper | Connector | Ceph)),
        _ => call.threads.contains(&kind),
    }
}

/// Returns every rule that allows a call to threads of this kind.
pub(super) fn allowed(kind: ThreadKind) -> impl Iterator<Item = &'static Call> {
    ALLOWED
        .iter()
        .chain(ALLOWED_HERE)
        .filter(move |call| applies(call, kind))
}
