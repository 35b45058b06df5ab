//! The end of a take-over, as the old process sees it.

use std::time::Instant;

use super::message::{LEAVE, Message};
use crate::succession::Line;

/// The process that serves the disks.
#[derive(Debug)]
pub(in crate::daemon) struct Heir {
    pub(in crate::daemon) pid: u32,
    pub(super) line: Line,
}

impl Heir {
    /// Waits until this process is not needed any more.
    pub(in crate::daemon) fn wait(&self) {
        // Nothing is sent, and the line ends.
        let _ = self.line.receive::<Message>(Instant::now() + LEAVE);
    }
}

/// The end of a take-over.
#[derive(Debug)]
pub(in crate::daemon) enum Outcome {
    /// This process goes on.
    GoesOn,
    /// Another process serves the disks.
    HandedOver(Heir),
}
