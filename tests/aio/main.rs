//! Event loops: driven by hand, on IOThreads, and with adaptive polling.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod context;
mod io_thread;
mod pollers;
mod wakeups;
