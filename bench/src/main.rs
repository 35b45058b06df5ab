//! Compares vhost-user block backends with an independent native frontend.
//!
//! ```text
//! args -> plan -> runner: for each case, round, candidate:
//!                     backend (process) <- frontend -> driver -> lanes -> sample -> report
//! ```
//!
//! The main thread starts and watches the backends, reads their usage from /proc and keeps the time.
//! Driving threads own the queues. No process or file is left behind: see `scratch` and `backend`.

mod args;
mod backend;
mod batches;
mod candidate;
mod claims;
mod command;
mod compare;
mod contention;
mod control;
mod daemon;
mod disks;
mod driver;
mod fio;
mod frontend;
mod hot;
mod html;
mod image;
mod lane;
mod limit;
mod limit_uring;
mod load;
mod machine;
mod neighbours;
mod output;
mod plain;
mod plan;
mod plot;
mod process;
mod qmp;
mod report;
mod runner;
mod sample;
mod scratch;
mod shape;
mod signals;
mod stats;
mod store;
mod table;
mod throttle;
mod units;
mod usage;

use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context, Result};
use clap::Parser;

use crate::args::{Action, Args};
use crate::machine::Machine;
use crate::plan::Plan;
use crate::report::{Measured, Report, SCHEMA, Version};
use crate::runner::Runner;
use crate::scratch::Scratch;

fn main() -> ExitCode {
    let args = Args::parse();
    if !args.janitor.is_empty() {
        scratch::janitor(std::io::stdin(), &args.janitor);
        return ExitCode::SUCCESS;
    }
    let result = raise_open_files().and_then(|()| match &args.action {
        Some(Action::Compare { old, new }) => compare::run(old, new),
        Some(Action::Render { samples, out }) => render(samples, out.as_deref()),
        Some(Action::Disks(args)) => disks::run(args),
        Some(Action::Hot(args)) => hot::run(args),
        Some(Action::Neighbours(args)) => neighbours::run(args),
        Some(Action::Throttle(args)) => throttle::run(args),
        None if args.plain.is_empty() => bench(&args),
        None => plain::serve(&args.plain),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vhost-user-blk-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Raises the limit of open files as far as possible: each disk needs several.
fn raise_open_files() -> Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: writes the limits into our own structure.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0 {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: reads our own structure.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } == 0 {
            return Ok(());
        }
    }
    Err(std::io::Error::last_os_error()).context("raise the limit of open files")
}

fn bench(args: &Args) -> Result<()> {
    if let Some(dir) = &args.out {
        output::check_dir(dir)?;
    }
    let mut plan = Plan::new(args)?;
    let interrupted = signals::interrupted()?;
    let dir = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let mut machine = Machine::here(&dir);
    if plan.cases.iter().any(|case| case.storage.is_on_disk()) && machine.file_system == "tmpfs" {
        plan.notes.push(format!(
            "{} is a tmpfs: page-cache and direct measure memory, not a disk (see --dir)",
            dir.display()
        ));
    }
    for note in &plan.notes {
        eprintln!("{note}");
    }
    eprintln!("runs: {}, about {:.0} s", plan.runs(), plan.seconds());
    let started = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let scratch = Scratch::new(&dir)?;
    let _at_end = store::AtEnd;
    let samples = Runner::new(&plan, &scratch, &interrupted).run()?;
    machine.finish();
    let measured = Measured {
        schema: SCHEMA,
        started: Some(started),
        machine: Some(machine),
        command: std::env::args().collect(),
        backends: plan.candidates.iter().map(Version::of).collect(),
        notes: plan.notes,
        samples,
    };
    show(measured, args.out.as_deref())
}

fn render(samples: &Path, out: Option<&Path>) -> Result<()> {
    let mut measured = Measured::read(samples)?;
    measured.machine.get_or_insert_with(|| {
        // The current load average is unrelated to the measurement.
        Machine {
            load_before: String::new(),
            ..Machine::here(&std::env::temp_dir())
        }
    });
    show(measured, out)
}

fn show(measured: Measured, out: Option<&Path>) -> Result<()> {
    let report = Report::new(measured);
    print!("{}", table::table(&report));
    out.map_or(Ok(()), |dir| output::write(&report, dir))
}
