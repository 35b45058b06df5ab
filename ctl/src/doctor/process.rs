//! The daemon's process, as `/proc` shows it.

use std::fs;

use super::finding::Finding;

/// Looks at the process of a daemon with this number of queues.
pub(super) fn look(pid: u32, queues: usize) -> Vec<Finding> {
    let confined = fs::read_to_string(format!("/proc/{pid}/status"));
    let unconfined = confined.is_ok_and(|status| status.lines().any(|line| line == "Seccomp:\t0"));
    let sandbox = unconfined.then(|| {
        Finding::warning(
            format!("process {pid} runs without a sandbox: a guest that exploits a bug gains all its rights"),
            "start the daemon with --sandbox on",
        )
    });
    sandbox.into_iter().chain(open_files(pid, queues)).collect()
}

/// Compares the limit of open files with what connected frontends need: three eventfds for each queue and about 40 for
/// everything else.
fn open_files(pid: u32, queues: usize) -> Option<Finding> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    let limit: usize = line.split_whitespace().next()?.parse().ok()?;
    let needed = 3 * queues + 40;
    (limit < needed).then(|| {
        Finding::error(
            format!("process {pid} may open {limit} files, but {queues} queues need about {needed}"),
            "raise LimitNOFILE= of the service (ulimit -n) and restart it",
        )
    })
}
