//! The process-wide options of a configuration file. Clap checks their values, as on a command line.

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, CommandFactory, ValueHint};
use serde_json::Value;

use crate::cli::options::{Cli, one_line};
use crate::cli::short;

/// Options that a file cannot have: the tables, options that do not belong to a running daemon, and absent ones.
const OTHERS: [&str; 11] = [
    "object",
    "blockdev",
    "export",
    "chardev",
    "monitor",
    "config",
    "print_capabilities",
    "trace",
    "nbd_server",
    "help",
    "version",
];

/// An option for the whole process.
#[derive(Debug)]
pub(super) struct ProcessOption {
    /// The option's id in clap.
    id: String,
    arguments: Vec<String>,
    repeats: bool,
}

impl ProcessOption {
    /// Checks an option.
    ///
    /// # Errors
    /// The option does not exist or is not process-wide, or its value is wrong. The error names the key.
    pub(super) fn new(key: &str, value: &Value) -> Result<Self, String> {
        let command = Cli::command();
        let option = command
            .get_arguments()
            .find(|option| option.get_long() == Some(key));
        let option = option.filter(|option| !OTHERS.contains(&option.get_id().as_str()));
        let option = option.ok_or_else(|| unknown(key, &command))?;
        if short::OPTIONS.contains(&option.get_id().as_str()) {
            return Err(format!(
                "'{key}' is for a single disk without a file: say it in a table of 'object', 'blockdev' or 'export'"
            ));
        }
        let arguments = arguments(key, option, value)?;
        let line = ["vhost-user-blk"]
            .into_iter()
            .chain(arguments.iter().map(String::as_str));
        Cli::command()
            .try_get_matches_from(line)
            .map_err(|error| format!("{key}: {}", reason(&error)))?;
        Ok(Self {
            id: option.get_id().to_string(),
            arguments,
            repeats: matches!(option.get_action(), ArgAction::Append),
        })
    }

    /// Returns whether the command line has this option, and so this one does not count.
    pub(super) fn yields_to(&self, given: &ArgMatches) -> bool {
        !self.repeats && given.value_source(&self.id) == Some(ValueSource::CommandLine)
    }

    pub(super) fn arguments(&self) -> impl Iterator<Item = String> {
        self.arguments.iter().cloned()
    }
}

/// Writes an option as arguments of a command line.
fn arguments(key: &str, option: &Arg, value: &Value) -> Result<Vec<String>, String> {
    let is_path = option.get_value_hint() == ValueHint::AnyPath;
    let argument = |value: &Value| match value {
        Value::String(text) => Ok(format!("--{key}={text}")),
        _ if is_path => Err(format!("'{key}' expects a string")),
        Value::Number(number) => Ok(format!("--{key}={number}")),
        _ => Err(format!("'{key}' expects a string or a number")),
    };
    match (option.get_action(), value) {
        (ArgAction::SetTrue, Value::Bool(on)) => Ok(on.then(|| format!("--{key}")).into_iter().collect()),
        (ArgAction::SetTrue, _) => Err(format!("'{key}' expects true or false")),
        (ArgAction::Append, Value::Array(list)) => list.iter().map(argument).collect(),
        _ => argument(value).map(|argument| vec![argument]),
    }
}

fn unknown(key: &str, command: &clap::Command) -> String {
    let other = |option: &&Arg| {
        let id = option.get_id().as_str();
        !OTHERS.contains(&id) && !short::OPTIONS.contains(&id) && !option.is_hide_set()
    };
    let known = command.get_arguments().filter(other).filter_map(Arg::get_long);
    let known: Vec<&str> = known.collect();
    format!(
        "unknown key '{key}': a file has the lists object, blockdev, export, chardev and monitor, and the options {}",
        known.join(", ")
    )
}

/// Returns clap's reason without what it says around it.
fn reason(error: &clap::Error) -> String {
    let text = one_line(error);
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    text.strip_suffix(" (see --help)").unwrap_or(text).to_owned()
}
