//! `query-blockstats`: the statistics of each export.

use serde::Deserialize;
use serde_json::{Value, json};

use super::convert::to_value;
use crate::blk::device::DiskFacts;
use crate::blk::latency::{BOUNDARIES, Latencies, Operation};
use crate::blk::stats::{DiskReport, Figures};
use crate::daemon::disks::Disk;
use crate::daemon::registry::Registry;
use crate::daemon::report::reports;
use crate::qmp::Outcome;

/// Accepted and ignored: statistics belong to exports, so both forms return the same.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct QueryNodes {
    #[serde(rename = "query-nodes")]
    _query_nodes: Option<bool>,
}

pub(super) fn query_blockstats(registry: &Registry, _: QueryNodes) -> Outcome {
    let nodes = registry.query_exports();
    let entry = |(disk, report): (&Disk, DiskReport)| {
        let node = nodes.iter().find(|export| export.id == disk.id());
        let mut export = to_value(&report)?;
        export["frontend"] = frontend(disk.facts());
        export["socket"] = disk.socket().into();
        Ok(json!({
            "qdev": disk.id(),
            "node-name": node.map(|export| export.node_name.as_str()).unwrap_or_default(),
            "stats": stats(&report.total),
            "x-export": export,
        }))
    };
    reports(registry)
        .map(entry)
        .collect::<Result<Vec<Value>, _>>()
        .map(Value::from)
}

/// Returns the process of the connected frontend, or null without one. Without a number, it is in another PID namespace.
fn frontend(facts: &DiskFacts) -> Value {
    match (facts.connected.get(), facts.frontend_pid.get()) {
        (0, _) => Value::Null,
        (_, 0) => json!({}),
        (_, pid) => json!({"pid": pid}),
    }
}

/// Returns all members that QEMU always has, and latency histograms. Figures that we do not count separately are 0.
///
/// As in QEMU, operations are those that succeeded. Our own counters include those that failed.
fn stats(figures: &Figures) -> Value {
    let mut stats = counters(figures);
    for (name, operation) in [
        ("rd_latency_histogram", Operation::Read),
        ("wr_latency_histogram", Operation::Write),
        ("flush_latency_histogram", Operation::Flush),
    ] {
        stats[name] = histogram(figures.latency.of(operation));
    }
    stats
}

fn histogram(latencies: &Latencies) -> Value {
    json!({ "boundaries": BOUNDARIES, "bins": latencies.by_bounds(&BOUNDARIES) })
}

fn counters(figures: &Figures) -> Value {
    let time = |operation| figures.latency.of(operation).total_nanos();
    // Saturating: an IOThread may count between the two readings.
    let succeeded = |all: u64, failed: u64| all.saturating_sub(failed);
    // Latencies are those of requests that succeeded, so they include neither failed nor invalid ones.
    let (account_invalid, account_failed) = (false, false);
    json!({
        "rd_bytes": figures.read_bytes,
        "wr_bytes": figures.written_bytes,
        "unmap_bytes": figures.unmapped_bytes,
        "zone_append_bytes": 0,
        "rd_operations": succeeded(figures.reads, figures.read_errors),
        "wr_operations": succeeded(figures.writes, figures.write_errors),
        "flush_operations": succeeded(figures.flushes, figures.flush_errors),
        "unmap_operations": succeeded(figures.unmaps, figures.unmap_errors),
        "zone_append_operations": 0,
        "rd_total_time_ns": time(Operation::Read),
        "wr_total_time_ns": time(Operation::Write),
        "flush_total_time_ns": time(Operation::Flush),
        "unmap_total_time_ns": time(Operation::Unmap),
        "zone_append_total_time_ns": 0,
        "wr_highest_offset": 0,
        "rd_merged": 0,
        "wr_merged": 0,
        "unmap_merged": 0,
        "zone_append_merged": 0,
        "failed_rd_operations": figures.read_errors,
        "failed_wr_operations": figures.write_errors,
        "failed_flush_operations": figures.flush_errors,
        "failed_unmap_operations": figures.unmap_errors,
        "failed_zone_append_operations": 0,
        "invalid_rd_operations": figures.invalid_reads,
        "invalid_wr_operations": figures.invalid_writes,
        "invalid_flush_operations": 0,
        "invalid_unmap_operations": figures.invalid_unmaps,
        "invalid_zone_append_operations": 0,
        "account_invalid": account_invalid,
        "account_failed": account_failed,
        "timed_stats": [],
    })
}
