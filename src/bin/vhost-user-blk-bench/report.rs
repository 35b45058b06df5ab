//! The results: a table for the terminal, report.json and report.html.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::html;
use crate::machine::Machine;
use crate::sample::{Case, Sample, Summary};
use crate::stats::Verdict;

/// Everything that was measured, in the order it was asked for.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Raised when a field changes its meaning.
    pub(crate) schema: u32,
    pub(crate) machine: Machine,
    pub(crate) command: Vec<String>,
    pub(crate) notes: Vec<String>,
    pub(crate) summaries: Vec<Summary>,
    pub(crate) samples: Vec<Sample>,
}

impl Report {
    /// Summarises `samples`; `backends` are in the order of the command line, the reference first.
    pub(crate) fn new(cases: &[Case], backends: &[String], samples: Vec<Sample>, notes: Vec<String>) -> Self {
        let key = |case: &Case| (case.storage, case.load.shape);
        let of = |case: &Case, backend: &String| -> Vec<&Sample> {
            samples
                .iter()
                .filter(|s| key(&s.case) == key(case) && &s.backend == backend)
                .collect()
        };
        let mut summaries = Vec::new();
        for case in cases {
            let present: Vec<&String> = backends.iter().filter(|b| !of(case, b).is_empty()).collect();
            let reference = present.first().map(|backend| of(case, backend));
            for (i, backend) in present.iter().enumerate() {
                let reference = reference.as_deref().filter(|_| i > 0);
                summaries.extend(Summary::new(&of(case, backend), reference));
            }
        }
        let command = std::env::args().collect();
        Self {
            schema: 1,
            machine: Machine::here(),
            command,
            notes,
            summaries,
            samples,
        }
    }

    /// Writes report.json and report.html to `dir`, which is made if needed.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        let json = serde_json::to_string_pretty(self)? + "\n";
        for (name, text) in [("report.json", json), ("report.html", html::page(self))] {
            let path = dir.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }

    /// The summaries as a table, 80 columns wide.
    pub(crate) fn table(&self) -> String {
        let mut out = String::new();
        for group in self.groups() {
            let _ = write!(out, "\n{}\n{HEAD}\n", title(&group[0]));
            for row in group {
                let _ = writeln!(out, "{}", line(row));
            }
        }
        out + LEGEND
    }

    /// The summaries case by case; no group is empty.
    pub(crate) fn groups(&self) -> impl Iterator<Item = &[Summary]> {
        let key = |row: &Summary| (row.case.storage, row.case.load.shape);
        self.summaries.chunk_by(move |a, b| key(a) == key(b))
    }
}

/// What a group of rows has in common.
pub(crate) fn title(row: &Summary) -> String {
    let load = &row.case.load;
    format!(
        "{} {} {} B, {} (queues x iodepth), medians of {}",
        name(&row.case.storage),
        name(&load.rw),
        load.block_size,
        load.shape,
        row.rounds
    )
}

const HEAD: &str = "backend           kIOPS    min..max        ratio (95 %)   c/n p50us p999us  cpu";
const LEGEND: &str = "
ratio: to the first backend;  c/n: completions per notification;  cpu: backend
CPU us per I/O;  '~': no difference shown;  '?': too noisy to say
";

fn line(row: &Summary) -> String {
    let kilo = |iops: f64| short(iops / 1e3);
    let range = format!("{}..{}", kilo(row.iops_min), kilo(row.iops_max));
    let ratio = ratio(row);
    let backend: String = row.backend.chars().take(17).collect();
    format!(
        "{backend:<17} {:>5} {range:>11} {ratio:>19} {:>5} {:>5} {:>6} {:>4}",
        kilo(row.iops),
        short(row.completions_per_notification),
        short(row.p50_us),
        short(row.p999_us),
        short(row.cpu_us_per_io),
    )
}

/// The ratio to the reference with its interval and a mark of doubt.
pub(crate) fn ratio(row: &Summary) -> String {
    let Some(ratio) = row.ratio else {
        return "reference".to_owned();
    };
    let mark = match ratio.verdict() {
        Verdict::Faster | Verdict::Slower => "",
        Verdict::Same => " ~",
        Verdict::Noise => " ?",
    };
    format!(
        "{} ({}..{}){mark}",
        short(ratio.value),
        short(ratio.low),
        short(ratio.high)
    )
}

/// Three digits or so.
pub(crate) fn short(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{v:.1e}"),
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

/// The name that a value has on the command line.
fn name<T: clap::ValueEnum>(value: &T) -> String {
    value
        .to_possible_value()
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default()
}
