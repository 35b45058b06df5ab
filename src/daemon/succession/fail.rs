//! Points at which a test kills or stops the process.

use std::fmt;
use std::str::FromStr;

use signal_hook::consts::{SIGKILL, SIGSTOP};
use signal_hook::low_level::raise;

/// A point in a take-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum FailPoint {
    // The process that takes over.
    Connected,
    Described,
    Made,
    Ready,
    Received,
    Restored,
    Taken,
    /// Stops the process where it has made everything.
    Early,
    /// Stops the process where it has restored everything.
    Late,
    // The process that hands over.
    Asked,
    Passed,
    Parking,
    Parked,
    HandedOver,
}

impl FailPoint {
    /// All points, with their names.
    pub const ALL: [(&'static str, Self); 14] = [
        ("connected", Self::Connected),
        ("described", Self::Described),
        ("made", Self::Made),
        ("ready", Self::Ready),
        ("received", Self::Received),
        ("restored", Self::Restored),
        ("taken", Self::Taken),
        ("early", Self::Early),
        ("late", Self::Late),
        ("asked", Self::Asked),
        ("passed", Self::Passed),
        ("parking", Self::Parking),
        ("parked", Self::Parked),
        ("handed-over", Self::HandedOver),
    ];

    /// Kills or stops the process if that is to happen at this point.
    pub(super) fn reached(self, chosen: Option<Self>) {
        let (signal, what) = match chosen {
            Some(chosen) if chosen == self => (SIGKILL, "killed"),
            Some(Self::Early) if self == Self::Made => (SIGSTOP, "stopped"),
            Some(Self::Late) if self == Self::Restored => (SIGSTOP, "stopped"),
            _ => return,
        };
        tracing::warn!(point = %self, "{what} on purpose");
        // Cannot fail for a signal of our own.
        let _ = raise(signal);
    }
}

impl fmt::Display for FailPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(_, point)| point == self);
        f.write_str(name.map_or("", |(name, _)| name))
    }
}

impl FromStr for FailPoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let point = Self::ALL.iter().find(|(name, _)| *name == text);
        point.map(|(_, point)| *point).ok_or_else(|| {
            let names = Self::ALL.map(|(name, _)| name);
            format!("'{text}' is not a point of a take-over: use {}", names.join(", "))
        })
    }
}
