//! Places in a configuration file, for error messages.

use std::sync::Arc;

use super::document::Lines;

/// The table of a configuration file that describes something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub(super) file: String,
    /// The path of the table in the file, such as `blockdev[1]`.
    pub(super) path: String,
    /// The table as users call it, such as `blockdev 'disk0'`.
    pub(super) table: String,
    pub(super) lines: Arc<Lines>,
}

impl Place {
    /// Returns the file, the line and the table, for the start of an error message. `key` is a key of the table, or
    /// empty.
    pub(in crate::cli) fn told(&self, key: &str) -> String {
        let path = match key {
            "" => self.path.clone(),
            key => format!("{}.{key}", self.path),
        };
        format!("{}: {}", at(&self.file, self.lines.of(&path)), self.table)
    }
}

/// Returns the file and the line, if it is known.
pub(super) fn at(file: &str, line: Option<usize>) -> String {
    match line {
        Some(line) => format!("{file}:{line}"),
        None => file.to_owned(),
    }
}
