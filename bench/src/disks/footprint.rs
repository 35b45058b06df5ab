//! What a backend process holds: memory, threads, descriptors; and what it does while it is idle. Read from /proc.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::usage::field;

/// A process counts as settled when no thread of it has run for this long.
const SETTLED: Duration = Duration::from_millis(200);
/// Number of such periods to wait for.
const PATIENCE: u32 = 50;

/// Memory in KiB, and numbers of threads and descriptors.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Footprint {
    pub(crate) threads: u64,
    pub(crate) fds: u64,
    /// Resident memory, without memory that is shared with frontends.
    pub(crate) rss: u64,
    /// The process's own part of it: without pages of programs and libraries.
    pub(crate) anonymous: u64,
    /// As `rss`, but each page counts only for the process's share of it. 0 if only root may know.
    pub(crate) pss: u64,
    /// Memory shared with frontends that the process has touched.
    pub(crate) shared: u64,
}

/// What the threads of a process have done since they started.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Activity {
    pub(crate) cpu: Duration,
    pub(crate) switches: u64,
}

fn dir(pid: u32) -> PathBuf {
    Path::new("/proc").join(pid.to_string())
}

impl Footprint {
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let dir = dir(pid);
        let status = fs::read_to_string(dir.join("status")).context("read /proc/PID/status")?;
        let kib = |name| field(&status, name).unwrap_or(0);
        let (anonymous, shared) = (kib("RssAnon:"), kib("RssShmem:"));
        let rollup = fs::read_to_string(dir.join("smaps_rollup")).unwrap_or_default();
        let pss = |name| field(&rollup, name).unwrap_or(0);
        Ok(Self {
            threads: kib("Threads:"),
            fds: fs::read_dir(dir.join("fd")).map_or(0, |fds| fds.count() as u64),
            rss: anonymous + kib("RssFile:"),
            anonymous,
            pss: pss("Pss_Anon:") + pss("Pss_File:"),
            shared,
        })
    }
}

impl Activity {
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let mut activity = Self::default();
        for task in fs::read_dir(dir(pid).join("task")).context("list threads")? {
            let task = task?.path();
            let read = |name| fs::read_to_string(task.join(name)).unwrap_or_default();
            let status = read("status");
            activity.switches += field(&status, "voluntary_ctxt_switches:").unwrap_or(0)
                + field(&status, "nonvoluntary_ctxt_switches:").unwrap_or(0);
            // Nanoseconds on a CPU, nanoseconds of waiting for one, number of time slices.
            let scheduled = read("schedstat");
            let nanos = scheduled.split(' ').next().and_then(|text| text.parse().ok());
            activity.cpu += Duration::from_nanos(nanos.unwrap_or(0));
        }
        Ok(activity)
    }

    /// Returns what happens during `time`.
    pub(crate) fn during(pid: u32, time: Duration) -> Result<Self> {
        let before = Self::of(pid)?;
        thread::sleep(time);
        let after = Self::of(pid)?;
        Ok(Self {
            cpu: after.cpu.saturating_sub(before.cpu),
            switches: after.switches.saturating_sub(before.switches),
        })
    }
}

/// Waits until the process does nothing any more, or for a few seconds.
pub(crate) fn settle(pid: u32) -> Result<()> {
    for _ in 0..PATIENCE {
        if Activity::during(pid, SETTLED)?.switches == 0 {
            break;
        }
    }
    Ok(())
}

/// Returns whether all of these sockets listen.
pub(crate) fn all_listen(sockets: &[PathBuf]) -> bool {
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let listening: std::collections::HashSet<&str> = table.lines().filter_map(listening).collect();
    sockets
        .iter()
        .all(|socket| socket.to_str().is_some_and(|path| listening.contains(path)))
}

/// Returns the path of the socket in a line of /proc/net/unix, if it listens.
fn listening(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    let flags = words.nth(3)?;
    let path = words.nth(3)?;
    // __SO_ACCEPTCON
    (u64::from_str_radix(flags, 16).ok()? & 0x10000 != 0).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_socket_that_does_not_listen_is_told_apart() {
        let line = "00000000f1a2: 00000002 00000000 00010000 0001 01 12345 /dev/shm/0.sock";
        assert_eq!(listening(line), Some("/dev/shm/0.sock"));
        assert_eq!(listening(&line.replace("00010000", "00000000")), None);
        assert_eq!(
            listening("Num       RefCount Protocol Flags    Type St Inode Path"),
            None
        );
    }

    #[test]
    fn this_process_has_memory_threads_and_files() {
        let own = Footprint::of(std::process::id()).unwrap();
        assert!(own.threads > 0 && own.fds > 0 && own.rss > own.anonymous && own.anonymous > 0);
    }
}
