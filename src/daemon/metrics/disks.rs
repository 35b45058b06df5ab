//! The metrics of disks and their queues.

use std::fmt;
use std::sync::Arc;

use super::family::{Buckets, Families, Labels, Value};
use crate::blk::latency::{BOUNDARIES, Latencies};
use crate::blk::stats::{Figures, QueueReport};
use crate::daemon::roster::DiskFigures;

type Disks = [Arc<DiskFigures>];

/// Writes the metrics of disks.
pub(super) fn disks(families: &mut Families<'_>, disks: &Disks) -> fmt::Result {
    let info = |disk: &Arc<DiskFigures>| {
        vec![
            ("disk", disk.id().to_owned()),
            ("image", disk.image()),
            ("engine", disk.engine().to_string()),
        ]
    };
    families.info(
        "vhost_user_blk_disk",
        "The disks that are served.",
        disks.iter().map(info),
    )?;
    let labels = |disk: &DiskFigures| vec![("disk", disk.id().to_owned())];
    let connected = disks.iter().map(|disk| {
        let connected = disk.facts().connected.get();
        (labels(disk), Value::Count(connected))
    });
    families.gauge(
        "vhost_user_blk_frontend_connected",
        "1 while a frontend is connected, otherwise 0.",
        connected,
    )?;
    let connections = disks.iter().map(|disk| {
        let connections = disk.facts().connections.get();
        (labels(disk), Value::Count(connections))
    });
    families.counter(
        "vhost_user_blk_frontend_connections",
        "Frontends that have connected.",
        connections,
    )
}

/// A queue with its labels.
#[derive(Debug)]
struct Queue {
    labels: Labels,
    report: QueueReport,
}

impl Queue {
    fn with(&self, name: &'static str, value: &str) -> Labels {
        let mut labels = self.labels.clone();
        labels.push((name, value.to_owned()));
        labels
    }
}

/// Writes the metrics of queues.
pub(super) fn queues(families: &mut Families<'_>, disks: &Disks) -> fmt::Result {
    let of_disk = |disk: &Arc<DiskFigures>| {
        let id = disk.id().to_owned();
        let reports = disk.report().queues.into_iter().enumerate();
        reports.map(move |(index, report)| Queue {
            labels: vec![("disk", id.clone()), ("queue", index.to_string())],
            report,
        })
    };
    let queues: Vec<Queue> = disks.iter().flat_map(of_disk).collect();
    requests(families, &queues)?;
    latencies(families, &queues)?;
    batches(families, &queues)?;
    states(families, &queues)?;
    counters(families, &queues)?;
    gauges(families, &queues)
}

/// Reads a figure of a queue.
type Read = fn(&Figures) -> u64;

/// Writes figures that differ by operation.
fn requests(families: &mut Families<'_>, queues: &[Queue]) -> fmt::Result {
    let counts: [(&str, Read); 5] = [
        ("read", |f| f.reads),
        ("write", |f| f.writes),
        ("flush", |f| f.flushes),
        ("unmap", |f| f.unmaps),
        ("other", |f| f.others),
    ];
    let bytes: [(&str, Read); 3] = [
        ("read", |f| f.read_bytes),
        ("write", |f| f.written_bytes),
        ("unmap", |f| f.unmapped_bytes),
    ];
    let errors: [(&str, Read); 5] = [
        ("read", |f| f.read_errors),
        ("write", |f| f.write_errors),
        ("flush", |f| f.flush_errors),
        ("unmap", |f| f.unmap_errors),
        ("other", |f| {
            let known = f.read_errors + f.write_errors + f.flush_errors + f.unmap_errors;
            f.errors.saturating_sub(known)
        }),
    ];
    by_operation(
        families,
        "requests",
        "Requests that were executed or refused.",
        queues,
        &counts,
    )?;
    by_operation(
        families,
        "transferred_bytes",
        "Bytes of requests that succeeded.",
        queues,
        &bytes,
    )?;
    by_operation(
        families,
        "request_errors",
        "Requests answered with an error.",
        queues,
        &errors,
    )
}

fn by_operation(
    families: &mut Families<'_>,
    name: &str,
    help: &str,
    queues: &[Queue],
    operations: &[(&str, Read)],
) -> fmt::Result {
    let of_queue = |queue| {
        let metric = move |(operation, read): &(&str, Read)| operation_metric(queue, operation, *read);
        operations.iter().map(metric)
    };
    let name = format!("vhost_user_blk_{name}");
    families.counter(&name, help, queues.iter().flat_map(of_queue))
}

fn operation_metric(queue: &Queue, operation: &str, read: Read) -> (Labels, Value) {
    let value = Value::Count(read(&queue.report.figures));
    (queue.with("operation", operation), value)
}

fn latencies(families: &mut Families<'_>, queues: &[Queue]) -> fmt::Result {
    let of_queue = |queue: &'_ Queue| {
        let operations = queue.report.figures.latency.operations();
        let metric = |(operation, latencies)| (queue.with("operation", operation), buckets(latencies));
        operations.map(metric).collect::<Vec<_>>()
    };
    families.histogram(
        "vhost_user_blk_request_duration_seconds",
        "Time from taking a request to showing its answer to the driver, if it succeeded.",
        queues.iter().flat_map(of_queue),
    )
}

#[allow(clippy::cast_precision_loss, reason = "exact up to 104 days")]
fn buckets(latencies: &Latencies) -> Buckets {
    let seconds = |nanos: u64| nanos as f64 / 1e9;
    let bounds = BOUNDARIES.iter().map(|bound| seconds(*bound));
    let bounds = bounds.chain([f64::INFINITY]);
    Buckets {
        sum: seconds(latencies.total_nanos()),
        counts: bounds.zip(latencies.by_bounds(&BOUNDARIES)).collect(),
    }
}

fn batches(families: &mut Families<'_>, queues: &[Queue]) -> fmt::Result {
    #[allow(clippy::cast_precision_loss, reason = "exact up to 2^53")]
    let metric = |queue: &Queue| {
        let figures = &queue.report.figures;
        let bounds = figures.completions_per_notification.bounds();
        let counts = bounds.map(|(last, count)| (last.map_or(f64::INFINITY, |last| last as f64), count));
        let buckets = Buckets {
            sum: figures.completions as f64,
            counts: counts.collect(),
        };
        (queue.labels.clone(), buckets)
    };
    families.histogram(
        "vhost_user_blk_completions_per_notification",
        "Answers that each notification covered.",
        queues.iter().map(metric),
    )
}

fn states(families: &mut Families<'_>, queues: &[Queue]) -> fmt::Result {
    let of_queue = |queue: &'_ Queue| {
        let metric = |state: &str| {
            let is = u64::from(queue.report.ring == state);
            (queue.with("state", state), Value::Count(is))
        };
        ["stopped", "running", "broken", "paused"].map(metric)
    };
    families.gauge(
        "vhost_user_blk_ring_state",
        "1 for the state that the ring is in, 0 for the others.",
        queues.iter().flat_map(of_queue),
    )
}

fn counters(families: &mut Families<'_>, queues: &[Queue]) -> fmt::Result {
    let counters: [(&str, &str, Read); 11] = [
        ("completions", "Answers shown to the driver.", |f| f.completions),
        ("notifications", "Notifications of the driver.", |f| {
            f.notifications
        }),
        ("kicks", "Notifications by the driver.", |f| f.kicks),
        (
            "missed_kicks",
            "Times that requests were found whose kick had not come in time.",
            |f| f.missed_kicks,
        ),
        (
            "poll_hits",
            "Times that polling found requests in the ring.",
            |f| f.poll_hits,
        ),
        (
            "requests_merged",
            "Reads and writes that were executed as one with another one.",
            |f| f.merged,
        ),
        (
            "requests_held",
            "Requests that have waited for room on the disk.",
            |f| f.held_ever,
        ),
        (
            "requests_throttled",
            "Requests that have waited for their throttle group.",
            |f| f.throttled_ever,
        ),
        (
            "requests_ignored",
            "Requests that failed although the guest was told that they succeeded.",
            |f| f.ignored,
        ),
        (
            "requests_late",
            "Requests that took longer than io-timeout.",
            |f| f.late,
        ),
        (
            "ring_breaks",
            "Times that the ring was stopped because it was broken.",
            |f| f.broken,
        ),
    ];
    for (name, help, read) in counters {
        let metric = |queue: &Queue| (queue.labels.clone(), Value::Count(read(&queue.report.figures)));
        let name = format!("vhost_user_blk_{name}");
        families.counter(&name, help, queues.iter().map(metric))?;
    }
    Ok(())
}

fn gauges(families: &mut Families<'_>, queues: &[Queue]) -> fmt::Result {
    let gauges: [(&str, &str, Read); 3] = [
        ("in_flight_requests", "Requests that are not answered yet.", |f| {
            f.in_flight
        }),
        ("held_requests", "Requests that wait for room on the disk.", |f| {
            f.held
        }),
        (
            "throttled_requests",
            "Requests that wait for their throttle group.",
            |f| f.throttled,
        ),
    ];
    for (name, help, read) in gauges {
        let metric = |queue: &Queue| (queue.labels.clone(), Value::Count(read(&queue.report.figures)));
        let name = format!("vhost_user_blk_{name}");
        families.gauge(&name, help, queues.iter().map(metric))?;
    }
    Ok(())
}
