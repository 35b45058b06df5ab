//! `trace`: what happens to a disk, line by line.

use std::io::{Write, stdout};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::qmp::Qmp;
use crate::rates::{Rates, float};
use crate::snapshot::{Disk, Snapshot};
use crate::text::latency;

/// The daemon traces requests for this much longer than an interval, in seconds.
const MARGIN: u64 = 5;

/// Prints the disk's events, its slow requests, and each interval in which its slowest thousandth took at least `limit`.
///
/// # Errors
/// The disk does not exist or is removed, or the daemon ends.
pub(crate) fn run(
    qmp: &mut Qmp,
    id: &str,
    interval: Duration,
    limit: Duration,
    count: Option<u64>,
) -> Result<()> {
    let mut before = Snapshot::take(qmp)?;
    before.disk(id)?;
    let mut left = count;
    let mut traces = true;
    while left != Some(0) {
        if traces && let Err(error) = trace_requests(qmp, id, interval, limit) {
            // Of an older version. If the disk has gone, that is reported below.
            eprintln!("the daemon does not say where slow requests spend their time: {error:#}");
            traces = false;
        }
        let next = before.taken + interval;
        while Instant::now() < next {
            if let Some(event) = qmp.event(next)? {
                report(&event, id)?;
            }
        }
        let now = Snapshot::take(qmp)?;
        let (Ok(old), Ok(new)) = (before.disk(id), now.disk(id)) else {
            bail!("disk '{id}' has been removed");
        };
        report_slow(old, new, now.taken - before.taken, limit)?;
        before = now;
        left = left.map(|left| left - 1);
    }
    Ok(())
}

/// Makes the daemon report slow requests until the end of the next interval.
fn trace_requests(qmp: &mut Qmp, id: &str, interval: Duration, limit: Duration) -> Result<()> {
    let limit = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
    let arguments = json!({"id": id, "slower-than-ns": limit, "seconds": interval.as_secs() + MARGIN});
    qmp.execute("__vhost-user-blk_trace-requests", &arguments)?;
    Ok(())
}

fn report_slow(old: &Disk, new: &Disk, time: Duration, limit: Duration) -> Result<()> {
    let queues = old.export.queues.iter().zip(&new.export.queues).enumerate();
    for (index, (old, new)) in queues {
        let rates = Rates::between(old, new, time);
        let slow = rates
            .p999
            .map(Duration::from_nanos)
            .filter(|slowest| *slowest >= limit);
        if slow.is_some() {
            writeln!(
                stdout(),
                "slow: queue={index} p50={} p99={} p99.9={} iops={:.0} depth={} throttled={} held={}",
                latency(rates.p50),
                latency(rates.p99),
                latency(rates.p999),
                rates.iops,
                rates.depth,
                new.throttled,
                new.held,
            )?;
        }
    }
    Ok(())
}

/// Prints an event, if it is of this disk.
fn report(event: &Value, id: &str) -> Result<()> {
    let data = &event["data"];
    if data["id"] != id && data["device"] != id {
        return Ok(());
    }
    let name = event["event"].as_str().unwrap_or_default();
    let name = name.strip_prefix("__vhost-user-blk_").unwrap_or(name);
    let stamp = &event["timestamp"];
    let seconds = float(stamp["seconds"].as_u64().unwrap_or_default());
    let micros = float(stamp["microseconds"].as_u64().unwrap_or_default());
    let at = seconds + micros / 1e6;
    if name == "REQUEST_SLOW" {
        writeln!(stdout(), "{at:.6} {}", slow_request(data))?;
        return Ok(());
    }
    let members = data.as_object().into_iter().flatten();
    let members =
        members.filter(|(name, _)| !["id", "device", "qom-path", "node-name"].contains(&name.as_str()));
    let members: Vec<String> = members.map(|(name, value)| format!("{name}={value}")).collect();
    let line = format!(
        "{at:.6} {}: {}",
        name.to_lowercase().replace('_', " "),
        members.join(" ")
    );
    writeln!(stdout(), "{}", line.trim_end())?;
    Ok(())
}

/// The stages of a slow request, in their order.
const STAGES: [&str; 5] = ["throttled", "waited", "storage", "returned", "published"];

/// Describes a slow request, and where its time went.
fn slow_request(data: &Value) -> String {
    let nanos = |stage: &str| data[format!("{stage}-ns")].as_u64().unwrap_or_default();
    let total = STAGES.iter().map(|stage| nanos(stage)).sum();
    let stages = STAGES.map(|stage| format!(" {stage}={}", latency(Some(nanos(stage)))));
    let place = match data["offset"].as_u64() {
        Some(offset) => format!(" offset={offset} bytes={}", data["bytes"]),
        None => String::new(),
    };
    let others = match data["others"].as_u64() {
        None | Some(0) => String::new(),
        Some(others) => format!(" (and {others} others)"),
    };
    format!(
        "slow {}: queue={}{place} took={}:{}{others}",
        data["operation"].as_str().unwrap_or_default(),
        data["queue"],
        latency(Some(total)),
        stages.concat(),
    )
}
