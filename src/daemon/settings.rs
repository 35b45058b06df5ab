//! The settings for the start of the daemon.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::options::{AddressType, BlockdevOptions, ExportOptions, ObjectOptions};
use super::succession::FailPoint;
use crate::sandbox::Mode;

/// The settings of the daemon.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Operations to run, in this order.
    pub operations: Vec<Operation>,
    /// Paths of the sockets for QMP clients.
    pub monitors: Vec<PathBuf>,
    /// Addresses at which metrics can be read.
    pub metrics: Vec<MetricsAddress>,
    /// Go to the background once everything is served.
    pub daemonize: bool,
    /// The pid file.
    pub pid_file: Option<PathBuf>,
    /// The level of confinement.
    pub sandbox: Mode,
    /// Directories in which the sandbox leaves names to disks that are added later.
    pub sandbox_paths: Vec<PathBuf>,
    /// The advice for all other names. It precedes an alternative.
    pub sandbox_hint: &'static str,
    /// The `USER[:GROUP]` to switch to.
    pub user: Option<String>,
    /// The socket on which another process may ask to take over.
    pub hand_over: Option<PathBuf>,
    /// The socket of the process to take over from. The operations are not run then, but allow connections to the servers
    /// and clusters that they name.
    pub take_over: Option<PathBuf>,
    /// The point of a take-over at which to kill the process, for tests.
    pub fail_point: Option<FailPoint>,
    /// Print statistics at the end.
    pub print_statistics: bool,
}

/// An address at which metrics can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetricsAddress {
    /// A Unix socket.
    Unix {
        /// Its path.
        path: PathBuf,
        /// Permission bits of its file, instead of 0600.
        mode: Option<u32>,
        /// Group of its file, as a name or a number.
        group: Option<String>,
    },
    /// A TCP port. With port 0 the kernel chooses one.
    Tcp(SocketAddr),
}

impl fmt::Display for MetricsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix { path, .. } => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

/// An operation that makes something.
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
    /// Returns the descriptors that are handed over, as text and as numbers. Standard input, output and error are not.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = (String, i32)> {
        self.exports().filter_map(|export| match export.addr.kind {
            AddressType::Fd => {
                let text = export.addr.text.clone()?;
                let number = text.parse().ok().filter(|&number| number > 2)?;
                Some((text, number))
            }
            _ => None,
        })
    }

    /// Returns the names of sockets that the service manager passes. A name does not begin with a digit.
    pub(super) fn named_sockets(&self) -> impl Iterator<Item = String> {
        let names = self.exports().filter_map(|export| export.addr.name());
        names.map(str::to_owned)
    }

    /// Returns whether an export uses the socket from the service manager.
    pub(super) fn is_activated(&self) -> bool {
        self.exports()
            .any(|export| export.addr.kind == AddressType::ServiceManager)
    }

    fn exports(&self) -> impl Iterator<Item = &ExportOptions> {
        let exports = self.operations.iter().filter_map(|operation| match operation {
            Operation::Export(export) => Some(&**export),
            _ => None,
        });
        exports.filter(|_| self.take_over.is_none())
    }
}
