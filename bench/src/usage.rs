//! Reads from /proc how much CPU time and memory processes used.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

/// Totals of one or more processes since their start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// User and system time of all threads, including those that have ended, in steps of 10 ms.
    pub(crate) cpu: Duration,
    /// The part of it of threads that exist now and do not belong to librbd, exact.
    pub(crate) own: Duration,
    /// There are threads of librbd.
    pub(crate) has_librbd: bool,
    /// Resident memory in KiB, including guest memory that the process has mapped and touched.
    pub(crate) rss_kib: u64,
    /// Voluntary and involuntary context switches of the threads that exist now.
    pub(crate) context_switches: u64,
}

impl Usage {
    /// Reads the totals of all `pids` and adds them up.
    pub(crate) fn of_all(pids: &[u32]) -> Result<Self> {
        pids.iter().try_fold(Self::default(), |sum, &pid| {
            let one = Self::of(pid)?;
            Ok(Self {
                cpu: sum.cpu + one.cpu,
                own: sum.own + one.own,
                has_librbd: sum.has_librbd || one.has_librbd,
                rss_kib: sum.rss_kib + one.rss_kib,
                context_switches: sum.context_switches + one.context_switches,
            })
        })
    }

    /// Reads the totals of `pid`.
    fn of(pid: u32) -> Result<Self> {
        let dir = Path::new("/proc").join(pid.to_string());
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
        };
        let (mut context_switches, mut own, mut has_librbd) = (0, Duration::ZERO, false);
        for task in fs::read_dir(dir.join("task"))? {
            // A thread may end between listing and reading.
            let task = task?.path();
            let read = |name| fs::read_to_string(task.join(name)).unwrap_or_default();
            let status = read("status");
            match is_librbds(read("comm").trim()) {
                true => has_librbd = true,
                false => own += run_time(&read("schedstat")),
            }
            context_switches += field(&status, "voluntary_ctxt_switches:").unwrap_or(0)
                + field(&status, "nonvoluntary_ctxt_switches:").unwrap_or(0);
        }
        Ok(Self {
            cpu: cpu_time(&read("stat")?).context("/proc/PID/stat has an unknown format")?,
            rss_kib: field(&read("status")?, "VmRSS:").unwrap_or(0),
            own,
            has_librbd,
            context_switches,
        })
    }
}

/// Returns whether a thread with this name belongs to librbd.
fn is_librbds(name: &str) -> bool {
    const STARTS: [&str; 9] = [
        "msgr-worker",
        "io_context_pool",
        "safe_timer",
        "ms_",
        "fn_",
        "fn-",
        "taskfin",
        "ceph_timer",
        "tp_librbd",
    ];
    ["log", "service", "admin_socket"].contains(&name) || STARTS.iter().any(|start| name.starts_with(start))
}

/// Returns the time that a thread has run: the first number, in nanoseconds.
fn run_time(schedstat: &str) -> Duration {
    let nanos = schedstat
        .split_whitespace()
        .next()
        .and_then(|word| word.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}

/// Measures the CPU time that programs outside of the benchmark use.
#[derive(Debug)]
pub(crate) struct Others {
    /// This process and the backends.
    pids: Vec<u32>,
    machine: Option<MachineTime>,
    benchmark: Duration,
}

/// CPU time since boot, over all CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MachineTime {
    busy: u64,
    all: u64,
}

impl Others {
    /// Starts measuring; `pids` are the processes under test.
    pub(crate) fn start(pids: &[u32]) -> Self {
        let mut pids = pids.to_vec();
        let own = std::process::id();
        if !pids.contains(&own) {
            pids.push(own);
        }
        Self {
            machine: machine_time(),
            benchmark: cpu_time_of(&pids),
            pids,
        }
    }

    /// Returns the share of the machine's CPU time that other programs have used since the start.
    ///
    /// This includes background work of the kernel, and the time that the hypervisor took.
    pub(crate) fn share(&self) -> Option<f64> {
        let benchmark = cpu_time_of(&self.pids).saturating_sub(self.benchmark);
        let (before, now) = (self.machine?, machine_time()?);
        let busy = now.busy.checked_sub(before.busy)?;
        let all = now.all.checked_sub(before.all).filter(|&all| all > 0)?;
        let others = ticks(busy).saturating_sub(benchmark);
        Some(others.as_secs_f64() / ticks(all).as_secs_f64())
    }
}

/// USER_HZ is 100 on every architecture that Linux supports.
fn ticks(number: u64) -> Duration {
    Duration::from_millis(number * 10)
}

fn cpu_time_of(pids: &[u32]) -> Duration {
    let stat = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    pids.iter().filter_map(|pid| cpu_time(&stat(pid)?)).sum()
}

fn machine_time() -> Option<MachineTime> {
    parse_machine_time(&fs::read_to_string("/proc/stat").ok()?)
}

fn parse_machine_time(stat: &str) -> Option<MachineTime> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let numbers: Vec<u64> = line
        .split_whitespace()
        .map_while(|word| word.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; guest time is part of user time.
    let [user, nice, system, idle, iowait, irq, softirq, steal, ..] = numbers[..] else {
        return None;
    };
    let busy = user + nice + system + irq + softirq + steal;
    Some(MachineTime {
        busy,
        all: busy + idle + iowait,
    })
}

/// Returns the first number after `name` at the start of a line.
pub(crate) fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

fn cpu_time(stat: &str) -> Option<Duration> {
    // The command's name may contain spaces and brackets; the fields after it do not.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut words = rest.split_whitespace().skip(11);
    let mut next = || words.next()?.parse::<u64>().ok();
    Some(ticks(next()? + next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_after_any_command_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 111 0 0 0 25 17 0 0 20 0 1 0 99 0 0";
        assert_eq!(cpu_time(stat), Some(Duration::from_millis(420)));
    }

    #[test]
    fn threads_of_librbd_are_known_by_their_names() {
        assert!(
            ["log", "msgr-worker-1", "io_context_pool", "ms_dispatch"]
                .iter()
                .all(|name| is_librbds(name))
        );
        assert!(
            !["iothread0", "qemu-storage-da", "ceph", "ceph-job", "login"]
                .iter()
                .any(|name| is_librbds(name))
        );
        assert_eq!(run_time("123456789 5 6\n"), Duration::from_nanos(123_456_789));
    }

    #[test]
    fn idle_time_is_not_busy_time() {
        let stat = "cpu  10 1 5 700 80 2 3 4 9 9\ncpu0 10 1 5 700 80 2 3 4 9 9\n";
        let expected = MachineTime { busy: 25, all: 805 };
        assert_eq!(parse_machine_time(stat), Some(expected));
        assert_eq!(parse_machine_time("cpu  10 1"), None);
    }

    #[test]
    fn this_process_has_used_memory_and_cpus() {
        let usage = Usage::of(std::process::id()).unwrap();
        assert!(usage.rss_kib > 0 && usage.context_switches > 0, "{usage:?}");
    }
}
