//! The result of the rounds as text.

use std::fmt::Write as _;

use super::rounds::{Holdings, Latencies, PER_SEGMENT, Rounds, Segment, WARM};
use crate::stats::{median, ratio};
use crate::units::short;

const KINDS: [(&str, Segment); 3] = [
    ("without changes", Segment::Quiet),
    ("changes of another process", Segment::Elsewhere),
    ("changes of this process", Segment::Here),
];

/// Renders the latencies of the disk beside the rounds, the rounds' own times, and what is left of them.
pub(super) fn text(rounds: &Rounds) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{:<28} {:>24} {:>24} {:>10}",
        "the disk beside, us", "p50", "p99", "requests"
    );
    for (name, kind) in KINDS {
        let (p50, p99) = (quantiles(rounds, kind, 0.5), quantiles(rounds, kind, 0.99));
        let requests: u64 = of(rounds, kind).map(|latencies| latencies.len()).sum();
        let _ = writeln!(
            out,
            "{name:<28} {:>24} {:>24} {requests:>10}",
            spread(&p50),
            spread(&p99)
        );
    }
    for (name, reference) in [
        ("without", Segment::Quiet),
        ("another process", Segment::Elsewhere),
    ] {
        for quantile in [0.5, 0.99] {
            let [here, there] = [Segment::Here, reference].map(|kind| quantiles(rounds, kind, quantile));
            let Some(ratio) = ratio(&here, &there) else {
                continue;
            };
            let _ = writeln!(
                out,
                "p{} here / {name}: {} ({}: {}..{})",
                quantile * 100.0,
                short(ratio.value),
                ratio.bounds.label(),
                short(ratio.low),
                short(ratio.high)
            );
        }
    }
    out.push_str(&times(rounds));
    out.push_str(&holdings(rounds));
    out
}

/// Renders the times of the rounds themselves.
fn times(rounds: &Rounds) -> String {
    let mut out = String::new();
    let mut took: Vec<f64> = rounds.took.iter().map(|time| time.as_secs_f64() * 1e3).collect();
    took.sort_by(f64::total_cmp);
    if let Some(last) = took.last() {
        let p99 = took[(took.len() * 99 / 100).min(took.len() - 1)];
        let _ = writeln!(
            out,
            "a round, ms: median {}, p99 {}, longest {}",
            short(median(&took)),
            short(p99),
            short(*last)
        );
    }
    out
}

/// Renders what the process held after the first rounds and at the end.
fn holdings(rounds: &Rounds) -> String {
    let mut out = String::new();
    let Holdings {
        footprint: warm,
        mappings: maps,
    } = rounds.warm;
    let Holdings {
        footprint: end,
        mappings,
    } = rounds.end;
    if end.threads > 0 {
        let after = rounds.took.len().min(WARM * PER_SEGMENT as usize);
        let _ = writeln!(
            out,
            "after {after} rounds and at the end: threads {}, {}; descriptors {}, {}; mappings {maps}, {mappings}; \
             resident KiB {}, {}; anonymous KiB {}, {}",
            warm.threads, end.threads, warm.fds, end.fds, warm.rss, end.rss, warm.anonymous, end.anonymous
        );
    }
    out
}

fn of(rounds: &Rounds, kind: Segment) -> impl Iterator<Item = &Latencies> {
    let segments = rounds.segments.iter();
    segments
        .filter_map(move |(other, latencies)| (*other == kind && !latencies.is_empty()).then_some(latencies))
}

/// Returns the quantile of each segment, in microseconds.
fn quantiles(rounds: &Rounds, kind: Segment, quantile: f64) -> Vec<f64> {
    let micros = |latencies: &Latencies| latencies.value_at_quantile(quantile) as f64 / 1e3;
    of(rounds, kind).map(micros).collect()
}

fn spread(values: &[f64]) -> String {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(0.0, f64::max);
    format!("{} ({}..{})", short(median(values)), short(low), short(high))
}
