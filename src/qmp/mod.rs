//! QMP, the protocol by which tools manage QEMU and qemu-storage-daemon: clients on Unix sockets, commands, events.
//!
//! Runs on the monitor thread ([`Monitor::run`]). Clients are trusted to manage disks, but they may make mistakes.
//! Garbage, incomplete messages, floods, and clients that do not read cost a bounded amount of memory and delay no
//! other client. The thread does no I/O on disks and waits for no disk. Other threads reach clients through [`Events`]
//! and [`Reply`].
//!
//! One table of [`Command`]s defines the commands, the checks of their arguments, and the schema. The module knows
//! nothing of disks.

mod arguments;
mod builtin;
mod client;
mod command;
mod error;
pub mod events;
mod fdsets;
mod json;
mod limiter;
mod mailbox;
mod monitor;
pub mod schema;
mod session;

pub use arguments::check;
pub use builtin::typed;
pub use command::{Command, Run, RunLater, Scope};
pub use error::{ErrorClass, Outcome, QmpError};
pub use fdsets::FdSets;
pub use json::parse_object;
pub use mailbox::{Events, Reply};
pub use monitor::Monitor;
