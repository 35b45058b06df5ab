//! The daemon's program: options, log, exit code.

use std::process::ExitCode;

use vhost_user_blk::ceph;
use vhost_user_blk::cli::{CAPABILITIES, Cli, WRONG_OPTION, one_line};
use vhost_user_blk::panics;
use vhost_user_blk::{daemon, log_format};

fn main() -> ExitCode {
    panics::end_the_process();
    daemon::ignore_early_signals();
    let status = serve();
    ceph::end_process(status);
    ExitCode::from(status)
}

/// Returns the exit code.
fn serve() -> u8 {
    let cli = match Cli::from_line(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => return fail(&one_line(&error), WRONG_OPTION),
        Err(help) => help.exit(),
    };
    if cli.print_capabilities {
        println!("{CAPABILITIES}");
        return 0;
    }
    log_format::init(cli.log_format.into(), cli.log_level.into());
    let settings = match cli.settings() {
        Ok(settings) => settings,
        Err(error) => return fail(&format!("error: {error}"), WRONG_OPTION),
    };
    match daemon::run(&settings) {
        Ok(()) => 0,
        Err(error) => {
            let (text, status) = cli.explain(&error);
            fail(&format!("error: {text}"), status)
        }
    }
}

fn fail(text: &str, status: u8) -> u8 {
    log_format::print(tracing::Level::ERROR, &in_one_line(text));
    status
}

/// Escapes line feeds and other control characters, which names in an error may have.
fn in_one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter.is_control() {
            true => line.extend(letter.escape_default()),
            false => line.push(letter),
        }
    }
    line
}
