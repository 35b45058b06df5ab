//! Sentences that the ratios of one case support, and warnings about the machine.

use crate::report::Measured;
use crate::sample::Summary;
use crate::stats::{Interval, Verdict};
use crate::units::short;

/// Other programs' share of the machine's CPU time above which the report warns.
const BUSY: f64 = 0.1;
/// Load average per CPU above which the report warns if the share above was not measured.
const BUSY_LOAD: f64 = 0.5;

/// A sentence about one row.
#[derive(Debug)]
pub(crate) struct Claim {
    /// Index of the row among those of its case.
    pub(crate) row: usize,
    pub(crate) text: String,
}

/// Compares each row with the first one of its case, the reference.
pub(crate) fn claims(rows: &[Summary]) -> Vec<Claim> {
    let claim = |(row, summary): (usize, &Summary)| {
        let mut text = throughput(summary, rows.first()?)?;
        if let Some(latency) = latency(summary, rows.first()?) {
            text = format!("{text}; {latency}");
        }
        Some(Claim { row, text })
    };
    rows.iter().enumerate().filter_map(claim).collect()
}

fn throughput(row: &Summary, reference: &Summary) -> Option<String> {
    let ratio = row.ratio?;
    let (backend, reference) = (&row.backend, &reference.backend);
    let (value, interval) = (short(ratio.value), interval(&ratio));
    Some(match ratio.verdict() {
        Verdict::Higher | Verdict::Lower => {
            format!("{backend}: {value} times the IOPS of {reference} {interval}")
        }
        Verdict::Same => format!("{backend}: no difference in IOPS from {reference} shown {interval}"),
        Verdict::Noise => format!("{backend}: IOPS too noisy to compare with {reference} {interval}"),
        Verdict::OneRound => {
            format!(
                "{backend}: {value} times the IOPS of {reference} in a single round, which proves nothing"
            )
        }
    })
}

fn latency(row: &Summary, reference: &Summary) -> Option<String> {
    let ratio = row.p999_ratio?;
    let interval = interval(&ratio);
    let verdict = match ratio.verdict() {
        Verdict::Higher | Verdict::Lower => format!("{} times {interval}", short(ratio.value)),
        Verdict::Same => format!("no difference shown {interval}"),
        Verdict::Noise => format!("too noisy to compare {interval}"),
        Verdict::OneRound => format!("{} times", short(ratio.value)),
    };
    let [ours, theirs] = [row.p999_us, reference.p999_us].map(time);
    Some(format!("p99.9 latency {ours} against {theirs}, {verdict}"))
}

fn time(us: f64) -> String {
    if us >= 1e3 {
        format!("{} ms", short(us / 1e3))
    } else {
        format!("{} µs", short(us))
    }
}

fn interval(ratio: &Interval) -> String {
    let Interval {
        low, high, bounds, ..
    } = *ratio;
    format!("({}: {}..{})", bounds.label(), short(low), short(high))
}

/// Warns if other programs used much of the CPU time while `rows` were measured.
pub(crate) fn busy(rows: &[Summary]) -> Option<String> {
    let share = rows.iter().filter_map(|row| row.others_cpu).fold(0.0, f64::max);
    (share > BUSY).then(|| {
        format!(
            "busy machine: other programs used {:.0} % of the CPU time",
            share * 100.0
        )
    })
}

/// Warns if the machine was busy before the first run, for samples that do not say what happened during it.
pub(crate) fn busy_before(measured: &Measured) -> Option<String> {
    let machine = measured.machine.as_ref()?;
    let load = machine.load_before.split(' ').next()?;
    let known = |figures: &crate::sample::Sample| figures.figures.others_cpu.is_some();
    let is_busy = load.parse::<f64>().ok()? > BUSY_LOAD * machine.cpus as f64;
    (is_busy && !measured.samples.iter().any(known)).then(|| {
        format!(
            "busy machine: the load average before the first run was {load} on {} CPUs",
            machine.cpus
        )
    })
}
