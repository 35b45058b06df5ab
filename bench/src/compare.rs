//! `compare OLD NEW`: finds rows that became slower or faster between two reports.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::LazyLock;

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use crate::contention::Contention;
use crate::report::read_json;
use crate::stats::{Bounds, Interval, unpaired_ratio};
use crate::units::short;

/// A smaller change is not worth acting on, however certain it is.
const TOLERANCE: f64 = 0.03;

/// The value of `contention` in reports that lack it.
static IDLE: LazyLock<Value> = LazyLock::new(|| json!(Contention::Idle));

/// Fields that two comparable samples have in common: all settings, and nothing that was measured.
const KEY: [&str; 13] = [
    "backend",
    "frontend",
    "storage",
    "rw",
    "block_size",
    "queues",
    "iodepth",
    "disks",
    "wait",
    "contention",
    "event_idx",
    "suppress",
    "driver_threads",
];

/// Prints the comparison.
///
/// # Errors
/// A report cannot be read, the reports have no case in common, or a row became slower beyond doubt.
pub(crate) fn run(old: &Path, new: &Path) -> Result<()> {
    let (old, new) = (read_json(old)?, read_json(new)?);
    for field in ["cpu", "cpus", "kernel", "file_system"] {
        let of = |report: &Value| report["machine"][field].to_string();
        if of(&old) != of(&new) {
            println!("{field} differs: {} and {}", of(&old), of(&new));
        }
    }
    let rows = rows(&old, &new);
    ensure!(!rows.is_empty(), "the reports have no case in common");
    print!("{}", table(&rows));
    match rows.iter().filter(|row| row.is_regression()).count() {
        0 => Ok(()),
        slower => bail!("{slower} of {} rows became slower", rows.len()),
    }
}

/// One case of one backend in both reports.
struct Row {
    name: String,
    /// New IOPS divided by old IOPS, and the same for the p99 latency and the CPU time per I/O.
    iops: Interval,
    p99: Option<Interval>,
    cpu: Option<Interval>,
}

impl Row {
    fn is_regression(&self) -> bool {
        self.iops.high < 1.0 && self.iops.value < 1.0 - TOLERANCE
    }

    fn verdict(&self) -> &'static str {
        if self.is_regression() {
            "SLOWER"
        } else if self.iops.low > 1.0 && self.iops.value > 1.0 + TOLERANCE {
            "faster"
        } else if self.iops.high - self.iops.low > 0.1 {
            "?"
        } else {
            "~"
        }
    }
}

fn rows(old: &Value, new: &Value) -> Vec<Row> {
    let (old, new) = (samples(old), samples(new));
    let mut rows: Vec<Row> = Vec::new();
    let mut seen: Vec<Vec<&Value>> = Vec::new();
    for sample in new {
        let key = key(sample);
        if seen.contains(&key) {
            continue;
        }
        let ratio = |field| unpaired_ratio(&figures(new, &key, field), &figures(old, &key, field));
        if let Some(iops) = ratio("iops") {
            rows.push(Row {
                name: name(sample),
                iops,
                p99: ratio("p99_us"),
                cpu: ratio("cpu_us_per_io"),
            });
        }
        seen.push(key);
    }
    rows
}

fn samples(report: &Value) -> &[Value] {
    report["samples"].as_array().map_or(&[], Vec::as_slice)
}

fn key(sample: &Value) -> Vec<&Value> {
    let of = |&field: &&'static str| match &sample[field] {
        Value::Null if field == "contention" => &*IDLE,
        value => value,
    };
    KEY.iter().map(of).collect()
}

fn figures(samples: &[Value], wanted: &[&Value], field: &str) -> Vec<f64> {
    let same = samples.iter().filter(|sample| key(sample) == wanted);
    same.filter_map(|sample| sample[field].as_f64()).collect()
}

fn name(sample: &Value) -> String {
    let text = |field: &str| sample[field].as_str().unwrap_or("?").to_owned();
    let disks = match &sample["disks"] {
        Value::Number(disks) if disks.as_u64() > Some(1) => format!("x{disks}"),
        _ => String::new(),
    };
    let event_idx = if sample["event_idx"] == true {
        ""
    } else {
        " -event_idx"
    };
    let contention = match sample["contention"].as_str() {
        None | Some("idle") => String::new(),
        Some(contention) => format!(" {contention}"),
    };
    format!(
        "{}x{}{disks} {}{event_idx}{contention} {}",
        sample["queues"],
        sample["iodepth"],
        text("storage"),
        text("backend")
    )
}

fn table(rows: &[Row]) -> String {
    let mut out = format!(
        "{:<40}{:>20} {:>5} {:>5}\n",
        "new / old", "IOPS (interval)", "p99", "cpu"
    );
    for row in rows {
        let name: String = row.name.chars().take(39).collect();
        let of = |interval: &Option<Interval>| interval.map_or("-".to_owned(), |ratio| short(ratio.value));
        let Interval { value, low, high, .. } = row.iops;
        let iops = format!("{} ({}..{})", short(value), short(low), short(high));
        let (p99, cpu) = (of(&row.p99), of(&row.cpu));
        let _ = writeln!(out, "{name:<40}{iops:>20} {p99:>5} {cpu:>5} {}", row.verdict());
    }
    out + legend(rows)
}

/// Describes the intervals.
fn legend(rows: &[Row]) -> &'static str {
    let is_sure = |row: &&Row| row.iops.bounds == Bounds::Confidence;
    match rows.iter().filter(is_sure).count() {
        0 => "interval: the lowest and highest ratio; 5 rounds would give a 95 % interval\n",
        sure if sure == rows.len() => "interval: 95 %\n",
        _ => "interval: 95 %; with fewer than 5 rounds the lowest and highest ratio\n",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(backend: &str, iops: &[f64]) -> Value {
        let sample = |iops| {
            json!({ "backend": backend, "storage": "tmpfs", "queues": 1, "iodepth": 8, "disks": 1,
                    "event_idx": true, "iops": iops, "p99_us": 10.0, "cpu_us_per_io": 0.0 })
        };
        json!({ "samples": iops.iter().map(sample).collect::<Vec<_>>() })
    }

    const OLD: [f64; 6] = [100.0, 101.0, 99.0, 100.0, 102.0, 98.0];

    #[test]
    fn only_a_clear_and_large_loss_is_a_regression() {
        for (factor, expected) in [(0.8, "SLOWER"), (0.98, "~"), (1.0, "~"), (1.3, "faster")] {
            let rows = rows(
                &report("ours", &OLD),
                &report("ours", &OLD.map(|iops| iops * factor)),
            );
            assert_eq!(rows.len(), 1);
            assert_eq!(rows[0].verdict(), expected, "{factor}: {}", table(&rows));
        }
    }

    #[test]
    fn noise_is_not_a_regression() {
        let wild = [40.0, 160.0, 90.0, 120.0, 70.0, 95.0];
        assert_eq!(
            rows(&report("ours", &OLD), &report("ours", &wild))[0].verdict(),
            "?"
        );
    }

    #[test]
    fn intervals_below_five_rounds_are_called_extremes() {
        let legend = |iops: &[f64]| legend(&rows(&report("ours", &OLD), &report("ours", iops)));
        assert_eq!(legend(&OLD), "interval: 95 %\n");
        assert!(legend(&OLD[..4]).contains("the lowest and highest"));
    }

    #[test]
    fn cases_of_one_report_alone_are_left_out() {
        assert!(rows(&report("ours", &OLD), &report("qsd", &OLD)).is_empty());
    }

    #[test]
    fn reports_without_contention_are_idle_ones() {
        let with = |contention: &str| {
            let mut report = report("ours", &OLD);
            for sample in report["samples"].as_array_mut().unwrap() {
                sample["contention"] = contention.into();
            }
            report
        };
        assert_eq!(rows(&report("ours", &OLD), &with("idle")).len(), 1);
        assert!(rows(&report("ours", &OLD), &with("one-cpu")).is_empty());
    }

    #[test]
    fn the_table_fits_a_terminal() {
        let report = report("ours:--notify each --thread-pool-max 32", &OLD);
        let text = table(&rows(&report, &report));
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }
}
