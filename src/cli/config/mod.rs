//! The configuration file (`--config`): the long form of the command line, as TOML or JSON.
//!
//! A file is a table. Its lists `object`, `blockdev`, `export`, `chardev` and `monitor` have one table for each option of
//! that name on a command line. The tables are read as the JSON form of those options, so both have the same words and
//! the same checks. All other keys are process-wide options. docs/config.md describes the file for users.

mod document;
pub(super) mod place;
mod process_wide;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use clap::ArgMatches;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use self::document::{Document, Lines};
pub use self::place::Place;
use self::place::at;
use self::process_wide::ProcessOption;
use super::long::MAKERS;
use super::monitor::{Chardev, Monitor};
use crate::daemon::Operation;
use crate::daemon::options::{Origin, ValueError, read};

/// The largest configuration file.
const BYTES_MAX: u64 = 16 << 20;

/// The content of a configuration file.
#[derive(Debug, Default)]
pub struct Config {
    pub(super) operations: Vec<(Operation, Place)>,
    pub(super) chardevs: Vec<Chardev>,
    pub(super) monitors: Vec<Monitor>,
    options: Vec<ProcessOption>,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// The file cannot be read, or has a mistake. The error is one line that names the file.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let file = path.display();
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|opened| opened.take(BYTES_MAX + 1).read_to_end(&mut bytes))
            .map_err(|error| format!("{file}: cannot read the configuration: {error}"))?;
        if bytes.len() as u64 > BYTES_MAX {
            return Err(format!("{file}: larger than 16 MiB: not a configuration"));
        }
        let text = String::from_utf8(bytes);
        let text = text.map_err(|_| format!("{file}: not text in UTF-8"))?;
        Self::parse(&text, &file.to_string())
    }

    /// Parses the text of a configuration file. `file` is the name in errors.
    ///
    /// # Errors
    /// The text is neither TOML nor JSON, a key is unknown, or a value is wrong. The error is one line that names the
    /// file, the table or key, and its line if the format tells.
    pub fn parse(text: &str, file: &str) -> Result<Self, String> {
        let document = Document::read(text);
        let Document { root, lines } =
            document.map_err(|mistake| format!("{}: {}", at(file, mistake.line), mistake.text))?;
        let mut tables = Tables {
            file,
            root,
            lines: Arc::new(lines),
        };
        let mut config = Self::default();
        for (name, _) in MAKERS {
            for (value, place) in tables.take(name)? {
                let operation = match name {
                    "object" => Operation::Object(Box::new(typed(value, &place)?)),
                    "blockdev" => Operation::Blockdev(Box::new(typed(value, &place)?)),
                    _ => Operation::Export(Box::new(typed(value, &place)?)),
                };
                config.operations.push((operation, place));
            }
        }
        for (value, place) in tables.take("chardev")? {
            let chardev = Chardev::new(typed(value, &place)?, Some(place.clone()));
            let chardev = chardev.map_err(|error| format!("{}: {error}", place.told("")));
            config.chardevs.push(chardev?);
        }
        for (value, place) in tables.take("monitor")? {
            let monitor = Monitor::new(typed(value, &place)?, Some(place.clone()));
            let monitor = monitor.map_err(|error| format!("{}: {error}", place.told("")));
            config.monitors.push(monitor?);
        }
        for (key, value) in &tables.root {
            let option = ProcessOption::new(key, value);
            let option = option.map_err(|error| format!("{}: {error}", at(file, tables.lines.of(key))));
            config.options.push(option?);
        }
        Ok(config)
    }

    /// Returns what the file makes, in order.
    pub fn operations(&self) -> impl Iterator<Item = &Operation> {
        self.operations.iter().map(|(operation, _)| operation)
    }

    /// Returns the process-wide options as arguments of a command line. Options that `given` has win over those of the
    /// file, but if they can be repeated, both count.
    pub(super) fn arguments(&self, given: &ArgMatches) -> impl Iterator<Item = String> {
        let options = self.options.iter().filter(|option| !option.yields_to(given));
        options.flat_map(ProcessOption::arguments)
    }
}

/// The content of a file that is not read yet.
struct Tables<'a> {
    file: &'a str,
    root: Map<String, Value>,
    lines: Arc<Lines>,
}

impl Tables<'_> {
    /// Takes the tables of a list out of the file.
    fn take(&mut self, name: &'static str) -> Result<Vec<(Value, Place)>, String> {
        let list = match self.root.remove(name) {
            None => return Ok(Vec::new()),
            Some(Value::Array(list)) if list.iter().all(Value::is_object) => list,
            Some(_) => {
                let at = at(self.file, self.lines.of(name));
                return Err(format!(
                    "{at}: '{name}' is not a list of tables: write [[{name}]] in TOML, \"{name}\": [{{...}}] in JSON"
                ));
            }
        };
        let placed = list.into_iter().enumerate().map(|(index, value)| {
            let place = Place {
                file: self.file.to_owned(),
                path: format!("{name}[{index}]"),
                table: called(name, index, &value),
                lines: Arc::clone(&self.lines),
            };
            (value, place)
        });
        Ok(placed.collect())
    }
}

/// Returns what users call a table: its kind, and its name if it has one.
fn called(kind: &str, index: usize, value: &Value) -> String {
    let names = ["id", "node-name", "chardev"].iter();
    let name = match kind {
        // Its id is the table's own name; the node is another table.
        "export" => value.get("id"),
        _ => names.filter_map(|key| value.get(key)).next(),
    };
    match name.and_then(Value::as_str) {
        Some(name) => format!("{kind} '{name}'"),
        None => format!("{kind} number {}", index + 1),
    }
}

fn typed<T: DeserializeOwned>(value: Value, place: &Place) -> Result<T, String> {
    let typed = read(value, Origin::Json);
    typed.map_err(|error: ValueError| format!("{}: {error}", place.told(error.path())))
}
