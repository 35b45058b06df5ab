//! Statistics as text (`--stats`, SIGUSR1), and the positions of rings that belong to them. Main thread.

use std::time::{Duration, Instant};

use super::disks::Disk;
use super::registry::Registry;
use super::roster::Roster;
use crate::blk::stats::DiskReport;
use crate::log_format;

/// The time for IOThreads to say where their rings stand. They do not answer while they execute a request themselves,
/// and the main thread must not wait for a disk.
const PATIENCE: Duration = Duration::from_millis(250);

/// Returns the statistics of all disks, with the positions of the rings on all IOThreads that answer in time.
pub(super) fn reports(registry: &Registry) -> impl Iterator<Item = (&Disk, DiskReport)> {
    let asked: Vec<_> = registry
        .disks()
        .map(|disk| (disk, disk.ask_positions()))
        .collect();
    let deadline = Instant::now() + PATIENCE;
    asked.into_iter().map(move |(disk, asked)| {
        let positions = asked.map(|asked| asked.wait_until(deadline));
        // Read after the answers, so that the counters are not older.
        (disk, disk.report().with_positions(&positions.unwrap_or_default()))
    })
}

/// Prints the statistics of all IOThreads and disks.
pub(super) fn print_statistics(registry: &Registry) {
    print_iothreads(registry.roster());
    reports(registry).for_each(|(_, report)| print(&report.to_string()));
}

/// Prints the statistics of IOThreads.
pub(super) fn print_iothreads(roster: &Roster) {
    for (id, figures) in roster.iothreads() {
        print(&format!("stats: iothread {id}: {figures}"));
    }
}

/// Prints the statistics of a disk.
pub(super) fn print_report(disk: &Disk) {
    print(&disk.report().to_string());
}

fn print(text: &str) {
    log_format::print(tracing::Level::INFO, text);
}
