//! fio's own client of a Ceph cluster: what librbd gives to a program without virtio.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testkit::ceph::POOL;

use crate::control::Outcome;
use crate::image::Image;
use crate::lane::Counts;
use crate::load::Load;
use crate::process::die_with_parent;
use crate::scratch::Scratch;
use crate::store::{Store, name};

pub(crate) const FIO: &str = "fio";

/// The name of the candidate.
pub(crate) const NAME: &str = "fio-rbd";

/// Runs a load on an image in the cluster, with as many requests in flight as a backend gets. Waits for its end.
///
/// # Errors
/// fio fails, or lacks the engine.
pub(crate) fn run(image: &Image, load: &Load, scratch: &Scratch) -> Result<Outcome> {
    let conf = scratch.memory().join("fio.conf");
    let _server = Store::Rbd.start(image, &conf)?;
    let millis = |time: Duration| format!("{}ms", time.as_millis());
    let pattern = match (load.rw.is_random(), load.rw.is_write()) {
        (true, true) => "randwrite",
        (true, false) => "randread",
        (false, true) => "write",
        (false, false) => "read",
    };
    let mut command = Command::new(FIO);
    command
        .args([
            "--name=load",
            "--ioengine=rbd",
            "--clientname=admin",
            "--time_based",
        ])
        .args(["--output-format=json+", "--lat_percentiles=0"])
        .arg(format!("--pool={POOL}"))
        .arg(format!("--rbdname={}", name(image)))
        .arg(format!("--rw={pattern}"))
        .arg(format!("--bs={}", load.block_size))
        .arg(format!("--iodepth={}", load.shape.in_flight()))
        .arg(format!("--ramp_time={}", millis(load.warmup)))
        .arg(format!("--runtime={}", millis(load.runtime)))
        .env("CEPH_CONF", &conf)
        .current_dir(scratch.memory())
        .stdin(Stdio::null());
    die_with_parent(&mut command);
    let output = command.output().context("start fio")?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{NAME}: fio failed: {}", told.trim());
    // Messages of the library may come first.
    let text = String::from_utf8_lossy(&output.stdout);
    let json = text.find('{').map_or("", |at| &text[at..]);
    let report = serde_json::from_str(json).context("read the report of fio")?;
    outcome(&report, load.rw.is_write()).with_context(|| format!("{NAME}: the report of fio lacks figures"))
}

/// Returns the figures of a report.
fn outcome(report: &Value, is_write: bool) -> Option<Outcome> {
    let direction = if is_write { "write" } else { "read" };
    let figures = report["jobs"].get(0)?.get(direction)?;
    let mut counts = Counts::new();
    counts.completions = figures["total_ios"].as_u64()?;
    for (nanos, number) in figures["clat_ns"]["bins"].as_object()? {
        let (nanos, number) = (nanos.parse().ok()?, number.as_u64()?);
        counts.latency.saturating_record_n(nanos, number);
    }
    Some(Outcome {
        counts,
        iops: figures["iops"].as_f64()?,
        cpu: Duration::ZERO,
        own_cpu: None,
        context_switches: 0,
        rss_kib: 0,
        others_cpu: None,
        negotiated_event_idx: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_rates_and_latencies() {
        let report = serde_json::json!({"jobs": [{"read": {
            "iops": 12.5, "total_ios": 3, "clat_ns": {"bins": {"1000": 2, "5000": 1}}
        }}]});
        let outcome = outcome(&report, false).unwrap();
        assert_eq!((outcome.iops, outcome.counts.completions), (12.5, 3));
        assert_eq!(outcome.counts.latency.len(), 3);
        assert!(super::outcome(&report, true).is_none());
    }
}
