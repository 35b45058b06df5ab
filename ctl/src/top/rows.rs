//! The cells of the tables, as text.

use std::time::Duration;

use crate::rates::{Rates, float};
use crate::snapshot::{Disk, Figures, Snapshot};
use crate::text::{latency, row};

/// Returns a row per disk and, if it has several, per queue, after the heading.
pub(crate) fn disks(before: &Snapshot, now: &Snapshot) -> Vec<Vec<String>> {
    let time = now.taken.saturating_duration_since(before.taken);
    let mut rows = vec![row([
        "DISK",
        "IOPS",
        "MiB/s",
        "P50",
        "P99",
        "P99.9",
        "DEPTH",
        "COMPL/INT",
        "STATE",
    ])];
    for disk in &now.disks {
        let old = before.disks.iter().find(|old| old.id == disk.id);
        let total = old.map_or(&disk.export.total, |old| &old.export.total);
        rows.push(line(
            disk.id.clone(),
            total,
            &disk.export.total,
            time,
            state(disk),
        ));
        if disk.export.queues.len() < 2 {
            continue;
        }
        for (index, queue) in disk.export.queues.iter().enumerate() {
            let old = old.and_then(|old| old.export.queues.get(index)).unwrap_or(queue);
            let ring = queue.ring.as_deref().unwrap_or_default();
            rows.push(line(format!("  {index}"), old, queue, time, ring));
        }
    }
    rows
}

fn line(name: String, old: &Figures, new: &Figures, time: Duration, state: &str) -> Vec<String> {
    let rates = Rates::between(old, new, time);
    vec![
        name,
        format!("{:.0}", rates.iops),
        format!("{:.1}", rates.mib_per_second),
        latency(rates.p50),
        latency(rates.p99),
        latency(rates.p999),
        rates.depth.to_string(),
        rates
            .per_interrupt
            .map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.1}")),
        state.to_owned(),
    ]
}

/// Returns the state of a disk that an operator should know first.
fn state(disk: &Disk) -> &'static str {
    let Figures { held, throttled, .. } = disk.export.total;
    let is = |ring: &str| {
        disk.export
            .queues
            .iter()
            .any(|queue| queue.ring.as_deref() == Some(ring))
    };
    match () {
        () if is("broken") => "broken",
        () if held > 0 => "full",
        () if throttled > 0 => "limited",
        () if disk.export.frontend.is_none() => "alone",
        () if is("running") => "running",
        () => "stopped",
    }
}

/// Returns a row per IOThread, after the heading. The CPU time of workers is not in these figures.
pub(crate) fn iothreads(before: &Snapshot, now: &Snapshot) -> Vec<Vec<String>> {
    let time = now.taken.saturating_duration_since(before.taken);
    let mut rows = vec![row(["IOTHREAD", "CPU", "WORKERS", "QUEUED"])];
    rows.extend(now.iothreads.iter().map(|thread| {
        let old = before.iothreads.iter().find(|old| old.id == thread.id);
        let figures = &thread.x_figures;
        let cpu = old.map_or(0, |old| figures.cpu_ns.saturating_sub(old.x_figures.cpu_ns));
        let share = 100.0 * float(cpu) / 1e9 / time.as_secs_f64().max(1e-9);
        vec![
            thread.id.clone(),
            format!("{share:.0}%"),
            figures.pool_threads.to_string(),
            figures.pool_queued_jobs.to_string(),
        ]
    }));
    rows
}
