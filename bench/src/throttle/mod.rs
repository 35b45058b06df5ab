//! `throttle`: do throttle groups give what their limits say?
//!
//! Each case starts a process with null disks behind a throttle group, and counts completions over time. The candidates
//! take turns. A limiter needs little CPU time, so this can be measured on a machine that is a little busy.

mod cases;
mod drive;
mod process;

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};

use crate::args::ThrottleArgs;
use crate::candidate::Candidate;
use crate::scratch::Scratch;
use crate::stats::median;
use crate::units::short;
use cases::{CASES, Case, Figure};
pub(crate) use drive::drive;

/// Measures, and prints a row for each figure and candidate.
///
/// # Errors
/// A backend cannot be started, or does not answer.
pub(crate) fn run(args: &ThrottleArgs) -> Result<()> {
    let candidates = args.rivals.candidates()?;
    ensure!(
        candidates.iter().all(process::has_groups),
        "only ours and qsd have throttle groups"
    );
    let interrupted = crate::signals::interrupted()?;
    let scratch = args.rivals.scratch()?;
    let wanted: Vec<&Case> = CASES
        .iter()
        .filter(|case| case.name.contains(&args.only))
        .collect();
    ensure!(!wanted.is_empty(), "no row has {:?} in its name", args.only);
    println!(
        "{:<44} {:<8} {:>9} {:>26} {:>22} {:>7}",
        "limit, or case", "backend", "set", "measured", "measured / set", "CPU %"
    );
    for case in wanted {
        let results = rounds(args, case, &candidates, &scratch, &interrupted)?;
        for (candidate, result) in candidates.iter().zip(results) {
            match result {
                Ok(figures) => print!("{}", rows(&candidate.name, &figures)),
                Err(error) => println!("{:<44} {:<8} failed: {error:#}", case.name, candidate.name),
            }
        }
    }
    Ok(())
}

/// The figures of a candidate, by round. An error is a result, too: some backends stop answering.
type Rounds = Result<Vec<Vec<Figure>>>;

/// Measures a case with each candidate.
fn rounds(
    args: &ThrottleArgs,
    case: &Case,
    candidates: &[Candidate],
    scratch: &Scratch,
    interrupted: &AtomicBool,
) -> Result<Vec<Rounds>> {
    let mut results: Vec<Rounds> = candidates.iter().map(|_| Ok(Vec::new())).collect();
    for round in 0..args.rounds as usize {
        for i in 0..candidates.len() {
            ensure!(!interrupted.load(Ordering::Relaxed), "interrupted");
            let at = (i + round) % candidates.len();
            let Ok(figures) = &mut results[at] else {
                continue;
            };
            let mut run = process::start(&candidates[at], &case.setup, scratch.memory(), interrupted)?;
            match (case.measure)(case, &mut run, args.runtime) {
                Ok(measured) => {
                    figures.push(measured);
                    run.end()?;
                }
                Err(error) => results[at] = Err(error),
            }
        }
    }
    Ok(results)
}

/// Renders the figures of one candidate.
fn rows(candidate: &str, rounds: &[Vec<Figure>]) -> String {
    let mut out = String::new();
    for (index, figure) in rounds[0].iter().enumerate() {
        let of = |pick: fn(&Figure) -> f64| -> Vec<f64> {
            rounds.iter().map(|figures| pick(&figures[index])).collect()
        };
        let (measured, cpu) = (of(|f| f.measured), of(|f| f.cpu));
        let ratios: Vec<f64> = measured.iter().map(|measured| measured / figure.set).collect();
        let _ = writeln!(
            out,
            "{:<44} {candidate:<8} {:>9} {:>26} {:>22} {:>7}",
            figure.name,
            plain(figure.set),
            spread(&measured, plain),
            spread(&ratios, |ratio| format!("{ratio:.3}")),
            short(median(&cpu) * 100.0),
        );
    }
    out
}

/// Formats a rate or a ratio without an exponent.
fn plain(value: f64) -> String {
    if value >= 10.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.3}")
    }
}

/// Returns the median, and the extremes if there are several rounds.
fn spread(values: &[f64], format: impl Fn(f64) -> String) -> String {
    if values.len() < 2 {
        return format(median(values));
    }
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(0.0, f64::max);
    format!("{} ({}..{})", format(median(values)), format(low), format(high))
}
