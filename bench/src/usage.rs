//! What a process used, from /proc.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

/// Totals of a process since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// User and system time of all threads, also of those that ended; counted in steps of 10 ms.
    pub(crate) cpu: Duration,
    /// Resident memory now, in KiB; guest memory that it mapped and touched counts.
    pub(crate) rss_kib: u64,
    /// Voluntary and involuntary context switches of the threads that live now.
    pub(crate) context_switches: u64,
}

impl Usage {
    /// The sum over `pids`.
    pub(crate) fn of_all(pids: &[u32]) -> Result<Self> {
        pids.iter().try_fold(Self::default(), |sum, &pid| {
            let one = Self::of(pid)?;
            Ok(Self {
                cpu: sum.cpu + one.cpu,
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
        let mut context_switches = 0;
        for task in fs::read_dir(dir.join("task"))? {
            // A thread may end between the listing and the look.
            let status = fs::read_to_string(task?.path().join("status")).unwrap_or_default();
            context_switches += field(&status, "voluntary_ctxt_switches:").unwrap_or(0)
                + field(&status, "nonvoluntary_ctxt_switches:").unwrap_or(0);
        }
        Ok(Self {
            cpu: cpu_time(&read("stat")?).context("/proc/PID/stat has an unknown format")?,
            rss_kib: field(&read("status")?, "VmRSS:").unwrap_or(0),
            context_switches,
        })
    }
}

/// The first number after `name` at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

fn cpu_time(stat: &str) -> Option<Duration> {
    // The command's name may have blanks and brackets in it; what follows it has none.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut words = rest.split_whitespace().skip(11);
    let mut ticks = || words.next()?.parse::<u64>().ok();
    // USER_HZ is 100 on every architecture that Linux supports.
    Some(Duration::from_millis((ticks()? + ticks()?) * 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_any_command_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 111 0 0 0 25 17 0 0 20 0 1 0 99 0 0";
        assert_eq!(cpu_time(stat), Some(Duration::from_millis(420)));
    }

    #[test]
    fn this_process_has_used_something() {
        let usage = Usage::of(std::process::id()).unwrap();
        assert!(usage.rss_kib > 0 && usage.context_switches > 0, "{usage:?}");
    }
}
