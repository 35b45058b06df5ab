//! The system calls that only an intruder makes. The kernel kills the process at once, before any code of the process runs.
//!
//! Libraries make none of these calls. Any other call that is not allowed is reported first: see [`violation`](super::violation).

use super::calls::{Call, Condition, calls};
use super::thread_kind::ThreadKind;

const ALL: &[ThreadKind] = &ThreadKind::ALL;

/// The condition of mmap and mprotect: they make memory executable.
const EXECUTABLE: Condition = Condition::Masked {
    argument: 2,
    mask: libc::PROT_EXEC.cast_unsigned(),
    value: libc::PROT_EXEC.cast_unsigned(),
    text: "with PROT_EXEC",
};

/// The condition of clone: it makes a process.
const A_PROCESS: Condition = Condition::Masked {
    argument: 0,
    mask: libc::CLONE_THREAD.cast_unsigned(),
    value: 0,
    text: "a process",
};

/// The condition of rt_sigaction: it replaces the handler that reports calls.
const OF_THE_REPORT: Condition = Condition::Among(0, &[("SIGSYS", libc::SIGSYS.cast_unsigned())]);

/// The fatal calls.
pub(super) static FATAL: &[Call] = calls! {
    ALL => [
        SYS_execve,
        SYS_execveat,
        SYS_clone if A_PROCESS,
        SYS_mmap if EXECUTABLE,
        SYS_mprotect if EXECUTABLE,
        SYS_rt_sigaction if OF_THE_REPORT,
        SYS_ptrace,
        SYS_process_vm_readv,
        SYS_process_vm_writev,
        SYS_kill,
        SYS_tkill,
        SYS_rt_sigqueueinfo,
        SYS_rt_tgsigqueueinfo,
        SYS_pidfd_send_signal,
        SYS_pidfd_getfd,
        SYS_setuid,
        SYS_setgid,
        SYS_setreuid,
        SYS_setregid,
        SYS_setresuid,
        SYS_setresgid,
        SYS_setgroups,
        SYS_capset,
        SYS_unshare,
        SYS_setns,
        SYS_mount,
        SYS_umount2,
        SYS_pivot_root,
        SYS_chroot,
        SYS_bpf,
        SYS_perf_event_open,
        SYS_userfaultfd,
        SYS_init_module,
        SYS_finit_module,
        SYS_delete_module,
        SYS_kexec_load,
        SYS_keyctl,
        SYS_add_key,
        SYS_request_key,
        SYS_open_by_handle_at,
    ]
};

/// The same calls under names that only older architectures have.
#[cfg(target_arch = "x86_64")]
pub(super) static FATAL_HERE: &[Call] = calls! { ALL => [SYS_fork, SYS_vfork] };

/// The same calls under names that only older architectures have: none here.
#[cfg(not(target_arch = "x86_64"))]
pub(super) static FATAL_HERE: &[Call] = &[];

#[cfg(test)]
mod tests {
    use super::super::calls::{REFUSED, allowed};
    use super::*;

    #[test]
    fn no_fatal_call_is_allowed_without_conditions() {
        for call in FATAL.iter().chain(FATAL_HERE) {
            for kind in ThreadKind::ALL {
                let mut others = allowed(kind).filter(|other| other.number() == call.number());
                let conditional = !call.condition().is_empty();
                assert!(
                    conditional || others.next().is_none(),
                    "{} of {kind}",
                    call.name()
                );
            }
            let mut refused = REFUSED.iter().flat_map(|(calls, _)| calls.iter());
            assert!(
                refused.all(|other| other.number() != call.number()),
                "{}",
                call.name()
            );
        }
    }
}
