//! The results of a run: all samples, and their summaries.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::candidate::Candidate;
use crate::machine::Machine;
use crate::sample::{Case, Sample, Summary};

/// The version of report.json. See `Measured::schema`.
pub(crate) const SCHEMA: u32 = 2;

/// The measured part of a report. docs/bench-schema.md describes it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Raised when a field changes its meaning.
    pub(crate) schema: u32,
    /// Date and time of the first run, in UTC and RFC 3339 form; unknown in old reports.
    #[serde(default)]
    pub(crate) started: Option<String>,
    pub(crate) machine: Option<Machine>,
    #[serde(default)]
    pub(crate) command: Vec<String>,
    /// In the order of the command line. The first one is the reference.
    #[serde(default)]
    pub(crate) backends: Vec<Version>,
    #[serde(default)]
    pub(crate) notes: Vec<String>,
    pub(crate) samples: Vec<Sample>,
}

/// All measurements, in the order of the command line, and their summaries.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    #[serde(flatten)]
    pub(crate) measured: Measured,
    pub(crate) summaries: Vec<Summary>,
}

/// A candidate and the version of its program.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Version {
    pub(crate) name: String,
    /// The first line of `--version`; unknown for a command of the user's.
    pub(crate) version: Option<String>,
}

impl Version {
    pub(crate) fn of(candidate: &Candidate) -> Self {
        Self {
            name: candidate.name.clone(),
            version: candidate.version(),
        }
    }
}

impl Measured {
    /// # Errors
    /// The file cannot be read, or does not have this schema.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        serde_json::from_value(read_json(path)?)
            .with_context(|| format!("{} is not a report", path.display()))
    }
}

/// # Errors
/// The file cannot be read, is not JSON, or has another schema.
pub(crate) fn read_json(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let json: Value =
        serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?;
    ensure!(
        json["schema"] == SCHEMA,
        "{} has schema {}, but this program reads schema {SCHEMA}",
        path.display(),
        json["schema"]
    );
    Ok(json)
}

impl Report {
    /// Summarises samples. In each case, the first backend that has samples is the reference of all ratios.
    pub(crate) fn new(mut measured: Measured) -> Self {
        let mut cases: Vec<Case> = Vec::new();
        for sample in &measured.samples {
            if !cases.contains(&sample.case) {
                cases.push(sample.case);
            }
            if !measured.backends.iter().any(|known| known.name == sample.backend) {
                measured.backends.push(Version {
                    name: sample.backend.clone(),
                    version: None,
                });
            }
        }
        let rows = |case| summarise(case, &measured);
        Self {
            summaries: cases.iter().flat_map(rows).collect(),
            measured,
        }
    }

    /// Returns the date and time of the measurement for people to read.
    pub(crate) fn date(&self) -> Option<String> {
        let (date, time) = self.measured.started.as_deref()?.split_once('T')?;
        Some(format!("{date} {} UTC", time.get(..5)?))
    }

    /// Returns the summaries, grouped by case. No group is empty.
    pub(crate) fn groups(&self) -> impl Iterator<Item = &[Summary]> {
        self.summaries.chunk_by(|a, b| a.case == b.case)
    }
}

/// Returns whether a row measures the host without a backend.
pub(crate) fn is_limit(backend: &str) -> bool {
    backend.starts_with("limit:")
}

/// Summarises one case, in the order of the backends.
fn summarise(case: &Case, measured: &Measured) -> Vec<Summary> {
    let of = |version: &Version| -> Vec<&Sample> {
        let is_its = |sample: &&Sample| sample.case == *case && sample.backend == version.name;
        measured.samples.iter().filter(is_its).collect()
    };
    let mut present: Vec<_> = measured.backends.iter().map(of).collect();
    present.retain(|samples| !samples.is_empty());
    let reference = present.first().map(Vec::as_slice);
    let row = |(i, samples): (usize, &Vec<&Sample>)| {
        let compared = i > 0 && !is_limit(&samples[0].backend);
        Summary::new(samples, reference.filter(|_| compared))
    };
    let mut rows: Vec<Summary> = present.iter().enumerate().filter_map(row).collect();
    let limits = rows.iter().filter(|row| is_limit(&row.backend));
    let limit = limits.map(|row| row.iops).fold(0.0, f64::max);
    if limit > 0.0 {
        rows.iter_mut()
            .for_each(|row| row.share_of_limit = Some(row.iops / limit));
    }
    rows
}
