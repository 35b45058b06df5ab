//! The CPUs that a thread may run on.

use std::io;

use crate::status::status;

/// Makes a thread run only on these CPUs. Threads that it creates later inherit this.
///
/// # Errors
/// The thread does not exist, or none of the CPUs does.
pub(crate) fn pin_thread(thread_id: i32, cpus: &[u16]) -> io::Result<()> {
    // SAFETY: a CPU set is an array of integers, for which zeroes are valid.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for cpu in cpus.iter().filter(|cpu| i32::from(**cpu) < libc::CPU_SETSIZE) {
        // SAFETY: the number is below CPU_SETSIZE.
        unsafe { libc::CPU_SET(usize::from(*cpu), &mut set) };
    }
    // SAFETY: the set is valid for its size.
    status(unsafe { libc::sched_setaffinity(thread_id, size_of_val(&set), &raw const set) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_runs_on_its_cpu() {
        std::thread::spawn(|| {
            // SAFETY: no arguments.
            let (own, cpu) = unsafe { (libc::gettid(), libc::sched_getcpu()) };
            let cpu = u16::try_from(cpu).unwrap();
            pin_thread(own, &[cpu]).unwrap();
            // SAFETY: no arguments.
            assert_eq!(unsafe { libc::sched_getcpu() }, i32::from(cpu));
            assert!(pin_thread(own, &[u16::MAX]).is_err());
        })
        .join()
        .unwrap();
    }
}
