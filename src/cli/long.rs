//! The long form of the command line: objects, nodes and exports in qemu-storage-daemon's words, in the given order.

use clap::ArgMatches;
use serde::de::DeserializeOwned;

use super::keyval;
use crate::daemon::Operation;
use crate::daemon::options::read;

/// The options that make something, with the key of a first value that is given without a key.
pub(super) const MAKERS: [(&str, &str); 3] =
    [("object", "qom-type"), ("blockdev", "driver"), ("export", "type")];

/// Returns the operations that the command line asks for, in order.
///
/// # Errors
/// An option has a mistake. The error is one line that names it.
pub(super) fn operations(matches: &ArgMatches) -> Result<Vec<Operation>, String> {
    let mut found = Vec::new();
    for (option, implied) in MAKERS {
        let texts = matches.get_many::<String>(option).into_iter().flatten();
        let places = matches.indices_of(option).into_iter().flatten();
        found.extend(
            places
                .zip(texts)
                .map(|(place, text)| (place, option, implied, text)),
        );
    }
    found.sort_by_key(|(place, ..)| *place);
    let operation = |(_, option, implied, text): (_, &str, &str, &String)| {
        operation(option, implied, text).map_err(|error| format!("--{option} {text}: {error}"))
    };
    found.into_iter().map(operation).collect()
}

fn operation(option: &str, implied: &str, text: &str) -> Result<Operation, String> {
    match option {
        "object" => Ok(Operation::Object(Box::new(options(text, implied)?))),
        "blockdev" => Ok(Operation::Blockdev(Box::new(options(text, implied)?))),
        _ => Ok(Operation::Export(Box::new(options(text, implied)?))),
    }
}

fn options<T: DeserializeOwned>(text: &str, implied: &str) -> Result<T, String> {
    let (value, origin) = keyval::parse(text, implied)?;
    read(value, origin).map_err(|error| error.to_string())
}
