//! `vhost-user-blkctl`: manages a running daemon over QMP.
//!
//! A library, so that manual pages and completions can be made from its command line.

mod add;
mod args;
mod change;
mod doctor;
mod qcow2;
mod qmp;
mod rates;
mod show;
mod snapshot;
mod text;
mod top;
mod trace;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use args::{Cli, Command};
use clap::{CommandFactory, Parser};
use qmp::Qmp;

/// Returns the command line.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns whether all is well.
fn run(cli: &Cli) -> Result<bool> {
    let connect = || Qmp::connect(&cli.socket);
    match &cli.command {
        Command::List => show::list(&mut connect()?)?,
        Command::Show { disk } => show::show(&mut connect()?, disk)?,
        Command::Add(options) => add::add(&mut connect()?, options)?,
        Command::Remove { disk, hard } => change::remove(&mut connect()?, disk, *hard)?,
        Command::Resize { disk, size } => change::resize(&mut connect()?, disk, *size)?,
        Command::Throttle(options) => change::throttle(&mut connect()?, options)?,
        Command::Stats { disk, json } => show::stats(&mut connect()?, disk.as_deref(), *json)?,
        Command::Top { interval, once } => {
            top::run(&mut connect()?, Duration::from_secs_f64(*interval), *once)?;
        }
        Command::Trace {
            disk,
            interval,
            slower_than,
            count,
        } => {
            let limit = Duration::from_secs_f64(slower_than.clamp(0.0, 1e6) / 1e3);
            trace::run(
                &mut connect()?,
                disk,
                Duration::from_secs_f64(*interval),
                limit,
                *count,
            )?;
        }
        Command::Doctor { image } => return doctor::run(&cli.socket, image),
    }
    Ok(true)
}

/// Returns whether the reader of our output has ended, which is no failure.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
