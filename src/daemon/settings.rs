//! What the daemon is asked to do at the start.

use std::fmt;
use std::path::PathBuf;

use super::options::{AddressType, BlockdevOptions, ExportOptions, ObjectOptions};
use crate::sandbox::Mode;

/// What the daemon is asked to do.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// What to make, in this order.
    pub operations: Vec<Operation>,
    /// Paths of the sockets for QMP clients.
    pub monitors: Vec<PathBuf>,
    /// Go on in the background once everything is served.
    pub daemonize: bool,
    /// The file to write the process's number to.
    pub pid_file: Option<PathBuf>,
    /// How strictly the process is confined.
    pub sandbox: Mode,
    /// The `USER[:GROUP]` to become.
    pub user: Option<String>,
    /// Print statistics at the end.
    pub print_statistics: bool,
}

/// Something to make.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the fields say it")]
pub enum Operation {
    Object(Box<ObjectOptions>),
    Blockdev(Box<BlockdevOptions>),
    Export(Box<ExportOptions>),
}

/// The kinds of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Verb {
    Object,
    Blockdev,
    Export,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Object => "object",
            Self::Blockdev => "blockdev",
            Self::Export => "export",
        })
    }
}

impl Operation {
    /// Returns the operation's kind.
    pub fn verb(&self) -> Verb {
        match self {
            Self::Object(_) => Verb::Object,
            Self::Blockdev(_) => Verb::Blockdev,
            Self::Export(_) => Verb::Export,
        }
    }
}

impl Settings {
    /// Returns the descriptors that are handed over: their numbers as text, and the numbers.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = (String, i32)> {
        self.exports().filter_map(|export| match export.addr.kind {
            AddressType::Fd => {
                let text = export.addr.text.clone()?;
                let number = text.parse().ok()?;
                Some((text, number))
            }
            _ => None,
        })
    }

    /// Returns whether a service manager hands a socket over.
    pub(super) fn is_activated(&self) -> bool {
        self.exports()
            .any(|export| export.addr.kind == AddressType::ServiceManager)
    }

    fn exports(&self) -> impl Iterator<Item = &ExportOptions> {
        self.operations.iter().filter_map(|operation| match operation {
            Operation::Export(export) => Some(&**export),
            _ => None,
        })
    }
}
