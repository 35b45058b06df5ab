//! `list`, `show` and `stats`.

use std::io::{Write, stdout};

use anyhow::Result;
use serde_json::{Value, json};

use crate::qmp::Qmp;
use crate::snapshot::{Disk, Figures, Snapshot};
use crate::text::{latency, row, size, table};

/// Lists the disks.
pub(crate) fn list(qmp: &mut Qmp) -> Result<()> {
    let snapshot = Snapshot::take(qmp)?;
    let mut rows = vec![row(["DISK", "SIZE", "MODE", "QUEUES", "FRONTEND", "IMAGE"])];
    rows.extend(snapshot.disks.iter().map(|disk| {
        vec![
            disk.id.clone(),
            size(disk.node.image.virtual_size),
            mode(disk).to_owned(),
            disk.export.queues.len().to_string(),
            frontend(disk),
            disk.image(),
        ]
    }));
    stdout().write_all(table(&rows).as_bytes())?;
    Ok(())
}

fn mode(disk: &Disk) -> &'static str {
    match (disk.node.active, disk.node.ro) {
        (false, _) => "inactive",
        (true, true) => "ro",
        (true, false) => "rw",
    }
}

fn frontend(disk: &Disk) -> String {
    match &disk.export.frontend {
        None => "-".to_owned(),
        Some(frontend) => frontend
            .pid
            .map_or_else(|| "connected".to_owned(), |pid| pid.to_string()),
    }
}

/// Shows a disk.
pub(crate) fn show(qmp: &mut Qmp, id: &str) -> Result<()> {
    let snapshot = Snapshot::take(qmp)?;
    let disk = snapshot.disk(id)?;
    let mut text = String::new();
    let mut line = |name: &str, value: String| text += &format!("{:<12}{value}\n", format!("{name}:"));
    line("disk", disk.id.clone());
    line("image", disk.image());
    line(
        "size",
        format!(
            "{} ({} bytes)",
            size(disk.node.image.virtual_size),
            disk.node.image.virtual_size
        ),
    );
    line("mode", mode(disk).to_owned());
    line(
        "page cache",
        if disk.node.cache.direct {
            "bypassed (O_DIRECT)"
        } else {
            "used"
        }
        .to_owned(),
    );
    line("node", format!("{} ({})", disk.node.node_name, disk.node.drv));
    line("engine", disk.export.engine.clone());
    line("socket", disk.export.socket.clone());
    line(
        "frontend",
        match frontend(disk).as_str() {
            "-" => "not connected".to_owned(),
            "connected" => "connected, from another PID namespace".to_owned(),
            pid => format!("process {pid}"),
        },
    );
    if disk.node.iops > 0 || disk.node.bps > 0 {
        line(
            "limits",
            format!(
                "{} requests/s, {}/s (0 is none)",
                disk.node.iops,
                size(disk.node.bps)
            ),
        );
    }
    stdout().write_all(format!("{text}\n{}", figures(disk)).as_bytes())?;
    Ok(())
}

/// Returns the queues and the latencies of a disk as text.
fn figures(disk: &Disk) -> String {
    let mut rows = vec![row([
        "QUEUE",
        "RING",
        "READS",
        "WRITES",
        "FLUSHES",
        "UNMAPS",
        "ERRORS",
        "IN FLIGHT",
    ])];
    let line = |name: String, ring: &str, figures: &Figures| {
        let counts = [
            figures.reads,
            figures.writes,
            figures.flushes,
            figures.unmaps,
            figures.errors,
            figures.in_flight,
        ];
        let counts = counts.iter().map(u64::to_string);
        [name, ring.to_owned()].into_iter().chain(counts).collect()
    };
    for (index, queue) in disk.export.queues.iter().enumerate() {
        rows.push(line(
            index.to_string(),
            queue.ring.as_deref().unwrap_or("-"),
            queue,
        ));
    }
    rows.push(line("total".to_owned(), "", &disk.export.total));
    let mut latencies = vec![row(["LATENCY", "COUNT", "P50", "P99", "P99.9", "MAX"])];
    latencies.extend(disk.export.total.latency.iter().map(|(name, figures)| {
        let quantiles =
            [figures.p50, figures.p99, figures.p999, figures.max].map(|nanos| latency(Some(nanos)));
        [name.clone(), figures.count.to_string()]
            .into_iter()
            .chain(quantiles)
            .collect()
    }));
    match latencies.len() {
        1 => table(&rows),
        _ => format!("{}\n{}", table(&rows), table(&latencies)),
    }
}

/// Prints the statistics of a disk, or of all.
pub(crate) fn stats(qmp: &mut Qmp, id: Option<&str>, as_json: bool) -> Result<()> {
    let snapshot = Snapshot::take(qmp)?;
    let disks: Vec<&Disk> = match id {
        Some(id) => vec![snapshot.disk(id)?],
        None => snapshot.disks.iter().collect(),
    };
    if as_json {
        let iothreads: Value = qmp.query("query-iothreads")?;
        let all = json!({ "disks": disks, "iothreads": iothreads });
        writeln!(stdout(), "{all:#}")?;
        return Ok(());
    }
    for disk in disks {
        writeln!(stdout(), "{} ({})\n{}", disk.id, disk.image(), figures(disk))?;
    }
    Ok(())
}
