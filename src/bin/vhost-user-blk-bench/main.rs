//! Compares vhost-user block backends with an independent native frontend.
//!
//! ```text
//! args -> plan -> for each case, round, candidate: backend (process) <- load -> driver -> lanes -> sample -> report
//! ```
//!
//! The main thread starts and watches the backends, takes their usage from /proc and keeps the time.
//! Driving threads own the queues. Nothing is left behind: see `scratch` and `backend`.

mod args;
mod backend;
mod candidate;
mod driver;
mod html;
mod image;
mod lane;
mod load;
mod machine;
mod plain;
mod plan;
mod report;
mod sample;
mod scratch;
mod stats;
mod svg;
mod units;
mod usage;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::args::Args;
use crate::backend::Backend;
use crate::candidate::Candidate;
use crate::image::Image;
use crate::plan::Plan;
use crate::report::Report;
use crate::sample::{Case, Figures, Sample};
use crate::scratch::Scratch;

fn main() -> ExitCode {
    let args = Args::parse();
    if !args.janitor.is_empty() {
        scratch::janitor(std::io::stdin(), &args.janitor);
        return ExitCode::SUCCESS;
    }
    let result = if args.plain.is_empty() {
        bench(&args)
    } else {
        plain::serve(&args.plain)
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vhost-user-blk-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(args: &Args) -> Result<()> {
    let plan = Plan::new(args)?;
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted)).context("handle signals")?;
    }
    for note in &plan.notes {
        eprintln!("{note}");
    }
    eprintln!(
        "{} candidates, about {:.0} s",
        plan.candidates.len(),
        plan.seconds()
    );
    let scratch = Scratch::new(&args.dir.clone().unwrap_or_else(std::env::temp_dir))?;
    let mut runner = Runner {
        plan: &plan,
        scratch: &scratch,
        interrupted: &interrupted,
        samples: Vec::new(),
    };
    let mut cases = Vec::new();
    for &storage in &plan.storage {
        let image = image::prepare(storage, plan.image_size, &scratch)?;
        for &load in &plan.loads {
            let case = Case { storage, load };
            runner.case(&case, &image)?;
            cases.push(case);
        }
    }
    runner.clear_progress();
    let backends: Vec<String> = plan
        .candidates
        .iter()
        .map(|candidate| candidate.name.clone())
        .collect();
    let report = Report::new(&cases, &backends, runner.samples, plan.notes.clone());
    print!("{}", report.table());
    args.out.as_deref().map_or(Ok(()), |dir| report.write(dir))
}

/// Runs candidates and keeps their samples.
struct Runner<'a> {
    plan: &'a Plan,
    scratch: &'a Scratch,
    interrupted: &'a AtomicBool,
    samples: Vec<Sample>,
}

impl Runner<'_> {
    /// All rounds of a case. Rounds start with another candidate each, so that none always comes first.
    fn case(&mut self, case: &Case, image: &Image) -> Result<()> {
        let candidates: Vec<&Candidate> = self
            .plan
            .candidates
            .iter()
            .filter(|candidate| candidate.supports(image))
            .collect();
        for round in 0..self.plan.rounds {
            for i in 0..candidates.len() {
                let candidate = candidates[(i + round as usize) % candidates.len()];
                self.progress(case, candidate, round);
                let sample = self.sample(case, candidate, image, round)?;
                self.samples.push(sample);
            }
        }
        Ok(())
    }

    fn sample(&self, case: &Case, candidate: &Candidate, image: &Image, round: u32) -> Result<Sample> {
        if self.interrupted.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        let mut backend = Backend::start(candidate, image, case.load.shape.queues, self.scratch.memory())?;
        let outcome = load::run(&mut backend, &case.load, self.interrupted)?;
        backend.stop()?;
        let figures = Figures::from(&outcome);
        Ok(Sample {
            backend: candidate.name.clone(),
            case: *case,
            round,
            figures,
        })
    }

    fn clear_progress(&self) {
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
    }

    fn progress(&self, case: &Case, candidate: &Candidate, round: u32) {
        if std::io::stderr().is_terminal() {
            let (shape, rounds) = (case.load.shape, self.plan.rounds);
            eprint!("\r\x1b[K{shape} round {}/{rounds}: {}", round + 1, candidate.name);
        }
    }
}
