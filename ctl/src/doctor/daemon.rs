//! The daemon: whether it answers, its process, its IOThreads, and its disks.

use std::path::Path;

use super::finding::Finding;
use super::{disk, process};
use crate::qmp::Qmp;
use crate::snapshot::{IoThread, Snapshot};

/// Looks at the daemon at `socket`.
pub(super) fn look(socket: &Path) -> Vec<Finding> {
    let found = Qmp::connect(socket).and_then(|mut qmp| {
        let snapshot = Snapshot::take(&mut qmp)?;
        Ok((qmp.daemon(), snapshot))
    });
    let (pid, snapshot) = match found {
        Ok(found) => found,
        // The message says what to do.
        Err(error) => {
            let text = format!("{error:#}");
            let (what, cure) = text
                .rsplit_once(": ")
                .unwrap_or((&text, "look at the daemon's log"));
            return vec![Finding::error(what, cure)];
        }
    };
    let mut findings = Vec::new();
    if let Some(pid) = pid {
        let queues = snapshot.disks.iter().map(|disk| disk.export.queues.len()).sum();
        findings.extend(process::look(pid, queues));
    }
    findings.extend(snapshot.iothreads.iter().filter_map(workers));
    findings.extend(snapshot.disks.iter().flat_map(|shown| disk::look(shown, pid)));
    findings
}

fn workers(thread: &IoThread) -> Option<Finding> {
    let failures = thread.x_figures.pool_spawn_failures;
    (failures > 0).then(|| {
        Finding::warning(
            format!(
                "IOThread {}: {failures} times a worker could not be created",
                thread.id
            ),
            "raise the limit of threads (TasksMax= of the service, ulimit -u of the user)",
        )
    })
}
