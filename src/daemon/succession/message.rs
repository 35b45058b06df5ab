//! The messages between the two processes.
//!
//! [`Message::Hello`] and [`Message::Refused`] keep their form in all formats. Everything else belongs to a format.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::daemon::registry::ParkedRegistry;
use crate::vhost_user::ParkedDisk;

/// The newest format that this program has, and the oldest. Format 2 added images in a format, disks on other machines,
/// inactive disks, and statistics. Format 3 added what helps if the old
/// process is killed.
pub(super) const NEWEST: u32 = 3;
pub(super) const OLDEST: u32 = 1;
/// The first format with the lifeline.
pub(super) const LIFELINE: u32 = 3;

/// This program, for messages to people.
pub(super) const PROGRAM: &str = concat!("vhost-user-blk ", env!("CARGO_PKG_VERSION"));

/// Time for the other process to answer while it has little to do.
pub(super) const SHORT: Duration = Duration::from_secs(10);
/// Time for the new process to make everything.
pub(super) const LONG: Duration = Duration::from_secs(60);
/// Time for requests in flight to end.
pub(super) const DRAIN: Duration = Duration::from_millis(500);
/// Time for the old process to end.
pub(super) const LEAVE: Duration = Duration::from_secs(2);
/// Time for the new process to restore the sessions, while guests wait.
pub(super) const RESTORE: Duration = Duration::from_secs(3);

/// A message. Some come with descriptors.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Message {
    /// From both, first.
    Hello(Hello),
    /// From both, at any time but the last: the other one goes on alone.
    Refused { reason: String },
    /// From the old process.
    Everything(Box<Everything>),
    /// From the new process: it could take over now.
    Ready,
    /// From the old process: a disk that is parked.
    Disk { export: String, disk: Box<ParkedDisk> },
    /// From the old process: there is no other disk.
    Parked,
    /// From the new process: the disks are its own.
    Taken,
    /// From the new process: it is alive, and starts the rings now.
    Starts,
}

/// The formats and the name of a program. The new process names all formats that it has, and the old one chooses.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Hello {
    pub(super) newest: u32,
    pub(super) oldest: u32,
    pub(super) program: String,
}

/// Everything but the disks' state. Numbers of type `usize` are places among the descriptors.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(in crate::daemon) struct Everything {
    pub(super) registry: ParkedRegistry,
    pub(super) rest: ParkedRest,
}

/// The parts of the process besides the objects, nodes and exports.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(in crate::daemon) struct ParkedRest {
    /// The sockets of monitors.
    pub(super) monitors: Vec<(PathBuf, usize)>,
    /// The sockets for metrics.
    pub(super) metrics: Vec<(String, usize)>,
    pub(super) pid_file: Option<(PathBuf, usize)>,
    pub(super) service_manager: Option<ParkedServiceManager>,
    /// The socket of this take-over, for the next one.
    pub(super) successors: (PathBuf, usize),
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) if_killed: Option<IfKilled>,
}

/// The pipes that tell about the end of the old process.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct IfKilled {
    /// It ends when the old process has ended with all its I/O.
    pub(super) lifeline: usize,
    /// It has data when the disks are not what was described any more.
    pub(super) promise: usize,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(in crate::daemon) struct ParkedServiceManager {
    pub(super) socket: usize,
    pub(super) watchdog_us: Option<u64>,
}

impl Hello {
    /// Describes this program.
    pub(super) fn new() -> Self {
        Self {
            newest: NEWEST,
            oldest: OLDEST,
            program: PROGRAM.to_owned(),
        }
    }

    /// Returns the newest format that both have. `self` is the new process.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn format(&self) -> Result<u32, String> {
        let newest = self.newest.min(NEWEST);
        if newest >= self.oldest.max(OLDEST) {
            return Ok(newest);
        }
        Err(format!(
            "{PROGRAM} hands over in {}, and {} takes over in {}: restart the service instead",
            formats(OLDEST, NEWEST),
            self.program,
            formats(self.oldest, self.newest),
        ))
    }
}

fn formats(oldest: u32, newest: u32) -> String {
    match oldest == newest {
        true => format!("format {newest}"),
        false => format!("formats {oldest} to {newest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(oldest: u32, newest: u32) -> Hello {
        Hello {
            newest,
            oldest,
            program: "vhost-user-blk 9.9.9".to_owned(),
        }
    }

    #[test]
    fn the_newest_common_format_is_chosen() {
        assert_eq!(hello(1, NEWEST).format(), Ok(NEWEST));
        assert_eq!(hello(1, NEWEST + 5).format(), Ok(NEWEST));
    }

    #[test]
    fn programs_without_a_common_format_are_named() {
        for (oldest, newest, told) in [
            (NEWEST + 1, NEWEST + 3, "takes over in formats 4 to 6"),
            (0, 0, "format 0"),
        ] {
            let refusal = hello(oldest, newest).format().unwrap_err();
            assert!(refusal.contains(told) && refusal.contains("9.9.9"), "{refusal}");
        }
    }

    #[test]
    fn hello_of_a_later_program_is_understood() {
        let later = r#"{"hello": {"newest": 7, "oldest": 3, "program": "p", "colour": "green"}}"#;
        assert!(matches!(
            serde_json::from_str(later),
            Ok(Message::Hello(Hello { newest: 7, .. }))
        ));
    }
}
