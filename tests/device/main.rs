//! The device in this process: from the available ring to the used ring, pass by pass.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod allocations;
mod changes;
mod fairness;
mod layouts;
mod log;
mod long_visits;
mod notifications;
mod rings;
mod two_disks;
mod vm;
mod write_cache;
