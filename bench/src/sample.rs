//! One sample per candidate, case and round, and the summary over rounds.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::args::StorageKind;
use crate::batches::Batches;
use crate::control::Outcome;
use crate::load::Load;
use crate::stats::{Interval, median, ratio};

/// The quantiles of a latency curve.
pub(crate) const QUANTILES: [f64; 11] = [0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9999];

/// A load on a kind of storage.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Case {
    pub(crate) storage: StorageKind,
    #[serde(flatten)]
    pub(crate) load: Load,
}

/// One run of one candidate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) backend: String,
    #[serde(flatten)]
    pub(crate) case: Case,
    pub(crate) round: u32,
    #[serde(flatten)]
    pub(crate) figures: Figures,
}

/// The figures of a sample: rates per second or per I/O, as named, and times in microseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) iops: f64,
    pub(crate) completions: u64,
    pub(crate) notifications: u64,
    /// 0 if there were no notifications.
    pub(crate) completions_per_notification: f64,
    /// Notifications with 0, 1, 2-3, 4-7, ... completions.
    pub(crate) batches: Batches,
    pub(crate) kicks_per_io: f64,
    pub(crate) wakeups_per_io: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) max_us: f64,
    /// Microseconds at each of [`QUANTILES`].
    pub(crate) latency_us: Vec<f64>,
    pub(crate) cpu_us_per_io: f64,
    /// Without librbd's threads, if there are any.
    #[serde(default)]
    pub(crate) own_cpu_us_per_io: Option<f64>,
    pub(crate) context_switches_per_io: f64,
    pub(crate) rss_kib: u64,
    /// Share of the machine's CPU time that other programs used; unknown if it was not measured.
    #[serde(default)]
    pub(crate) others_cpu: Option<f64>,
    /// Whether the backend accepted EVENT_IDX.
    pub(crate) negotiated_event_idx: bool,
}

impl From<&Outcome> for Figures {
    fn from(outcome: &Outcome) -> Self {
        let counts = &outcome.counts;
        let per_io = |value: u64| value as f64 / counts.completions.max(1) as f64;
        let cpu_per_io = |time: Duration| time.as_secs_f64() * 1e6 / counts.completions.max(1) as f64;
        let percentile = |quantile| counts.latency.value_at_quantile(quantile) as f64 / 1e3;
        Self {
            iops: outcome.iops,
            completions: counts.completions,
            notifications: counts.notifications,
            completions_per_notification: match counts.notifications {
                0 => 0.0,
                notifications => counts.completions as f64 / notifications as f64,
            },
            batches: counts.batches,
            kicks_per_io: per_io(counts.kicks),
            wakeups_per_io: per_io(counts.wakeups),
            p50_us: percentile(0.5),
            p99_us: percentile(0.99),
            p999_us: percentile(0.999),
            max_us: counts.latency.max() as f64 / 1e3,
            latency_us: QUANTILES.iter().map(|&quantile| percentile(quantile)).collect(),
            cpu_us_per_io: cpu_per_io(outcome.cpu),
            own_cpu_us_per_io: outcome.own_cpu.map(cpu_per_io),
            context_switches_per_io: per_io(outcome.context_switches),
            rss_kib: outcome.rss_kib,
            others_cpu: outcome.others_cpu,
            negotiated_event_idx: outcome.negotiated_event_idx,
        }
    }
}

/// All rounds of one candidate in one case.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Summary {
    pub(crate) backend: String,
    #[serde(flatten)]
    pub(crate) case: Case,
    pub(crate) rounds: usize,
    pub(crate) iops: f64,
    pub(crate) iops_min: f64,
    pub(crate) iops_max: f64,
    /// IOPS divided by those of the reference; none for the reference itself.
    pub(crate) ratio: Option<Interval>,
    /// Latency at p99.9 divided by that of the reference; none for the reference itself.
    pub(crate) p999_ratio: Option<Interval>,
    /// IOPS divided by those of the faster limit; none without `--limit`.
    pub(crate) share_of_limit: Option<f64>,
    pub(crate) batches: Batches,
    pub(crate) completions_per_notification: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    /// Microseconds at each of [`QUANTILES`].
    pub(crate) latency_us: Vec<f64>,
    pub(crate) cpu_us_per_io: f64,
    pub(crate) own_cpu_us_per_io: Option<f64>,
    pub(crate) context_switches_per_io: f64,
    pub(crate) rss_kib: f64,
    pub(crate) others_cpu: Option<f64>,
}

impl Summary {
    /// Summarises the samples of one candidate in one case. `reference` are the samples to compare with.
    pub(crate) fn new(samples: &[&Sample], reference: Option<&[&Sample]>) -> Option<Self> {
        let first = samples.first()?;
        let all = |pick: fn(&Figures) -> f64| samples.iter().map(|s| pick(&s.figures)).collect::<Vec<_>>();
        let of = |pick| median(&all(pick));
        let iops = all(|f| f.iops);
        let against = |pick: fn(&Figures) -> f64| {
            let theirs: Vec<f64> = reference?.iter().map(|s| pick(&s.figures)).collect();
            ratio(&all(pick), &theirs)
        };
        let known = |pick: fn(&Figures) -> Option<f64>| {
            let all: Vec<f64> = samples.iter().filter_map(|s| pick(&s.figures)).collect();
            (!all.is_empty()).then(|| median(&all))
        };
        Some(Self {
            backend: first.backend.clone(),
            case: first.case,
            rounds: samples.len(),
            iops: median(&iops),
            iops_min: iops.iter().copied().fold(f64::INFINITY, f64::min),
            iops_max: iops.iter().copied().fold(0.0, f64::max),
            ratio: against(|f| f.iops),
            p999_ratio: against(|f| f.p999_us),
            share_of_limit: None,
            batches: samples.iter().fold(Batches::default(), |mut sum, sample| {
                sum.add(&sample.figures.batches);
                sum
            }),
            completions_per_notification: of(|f| f.completions_per_notification),
            p50_us: of(|f| f.p50_us),
            p99_us: of(|f| f.p99_us),
            p999_us: of(|f| f.p999_us),
            latency_us: (0..QUANTILES.len())
                .map(|i| {
                    median(
                        &samples
                            .iter()
                            .map(|s| s.figures.latency_us[i])
                            .collect::<Vec<_>>(),
                    )
                })
                .collect(),
            cpu_us_per_io: of(|f| f.cpu_us_per_io),
            own_cpu_us_per_io: known(|f| f.own_cpu_us_per_io),
            context_switches_per_io: of(|f| f.context_switches_per_io),
            rss_kib: of(|f| f.rss_kib as f64),
            others_cpu: known(|f| f.others_cpu),
        })
    }
}
