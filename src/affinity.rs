//! The CPUs that a thread may run on.

use std::io;

use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};

/// Makes a thread run only on these CPUs. Threads that it creates later inherit this.
///
/// # Errors
/// The thread does not exist, or none of the CPUs does.
pub(crate) fn pin_thread(thread_id: i32, cpus: &[u16]) -> io::Result<()> {
    let thread = Pid::from_raw(thread_id).ok_or(io::ErrorKind::NotFound)?;
    let mut set = CpuSet::new();
    let known = cpus.iter().map(|&cpu| usize::from(cpu));
    known
        .filter(|&cpu| cpu < CpuSet::MAX_CPU)
        .for_each(|cpu| set.set(cpu));
    Ok(sched_setaffinity(Some(thread), &set)?)
}

/// Returns the number of CPUs that the calling thread may run on, or the highest number if it is unknown.
pub(crate) fn own_cpus() -> usize {
    match sched_getaffinity(None) {
        Ok(set) => set.count() as usize,
        // More CPUs than a set has room for.
        Err(_) => usize::MAX,
    }
}

#[cfg(test)]
mod tests {
    use rustix::thread::{gettid, sched_getcpu};

    use super::*;

    #[test]
    fn a_pinned_thread_runs_on_its_cpu() {
        std::thread::spawn(|| {
            let (own, cpu) = (gettid().as_raw_pid(), sched_getcpu());
            pin_thread(own, &[cpu.try_into().unwrap()]).unwrap();
            assert_eq!(sched_getcpu(), cpu);
            assert_eq!(own_cpus(), 1);
            assert!(pin_thread(own, &[u16::MAX]).is_err());
        })
        .join()
        .unwrap();
    }
}
