//! Statistics as text (`--stats`, SIGUSR1). Main thread.

use super::disks::Disk;
use super::registry::Registry;
use super::roster::Roster;
use crate::log_format;

/// Prints the statistics of all IOThreads and disks.
pub(super) fn print_statistics(registry: &Registry) {
    print_iothreads(registry.roster());
    registry.disks().for_each(print_report);
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
