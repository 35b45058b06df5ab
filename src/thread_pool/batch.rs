//! Jobs on their way through a worker, and back to the context.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::pace::Pace;
use super::shares::{Queued, ShareId};
use crate::aio::adaptive::PollWindow;
use crate::aio::crowding::Crowding;

/// The outcome of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The job ran.
    Done,
    /// The job was cancelled before a worker took it, and did not run.
    Cancelled,
    /// The job's `run` panicked.
    Panicked,
}

/// A job on its way back to the context.
#[derive(Debug)]
pub(super) struct Finished<W> {
    pub(super) work: W,
    pub(super) outcome: Outcome,
}

/// The jobs of one worker.
#[derive(Debug)]
pub(super) struct Batch<W> {
    /// Taken from the queue, not started.
    pub(super) taken: VecDeque<Queued<W>>,
    /// The share that the jobs belong to, from the moment they are taken until the last of them is finished.
    pub(super) share: Option<ShareId>,
    /// Finished, not delivered to the context yet.
    pub(super) finished: Vec<Finished<W>>,
    /// The pace of the last jobs.
    pub(super) pace: Pace,
    /// The pool is serial.
    pub(super) serial: bool,
    /// When the first job of the batch was started.
    pub(super) begun: Option<Instant>,
    /// The time to poll before sleeping.
    pub(super) window: PollWindow,
    /// The worker's record about other threads on its CPU.
    pub(super) crowding: Crowding,
}

impl<W> Batch<W> {
    pub(super) fn new(poll_max: Duration) -> Self {
        Self {
            taken: VecDeque::new(),
            share: None,
            finished: Vec::new(),
            pace: Pace::Blocking,
            serial: false,
            begun: None,
            crowding: Crowding::default(),
            window: if cfg!(loom) {
                PollWindow::open(poll_max)
            } else {
                PollWindow::new(poll_max)
            },
        }
    }
}
