//! The in-flight region of a session, and the outcome of flushes that is recorded there.

use std::fs::File;
use std::sync::Arc;

use crate::storage::FlushWitness;
use crate::virtqueue::{InflightRegion, RegionLayout, SpareByte};

/// The place where chains in flight are tracked.
#[derive(Debug)]
pub(super) enum Inflight {
    /// The frontend does not use in-flight tracking.
    Untracked,
    /// The region, and its file if another process may take over.
    Region(InflightRegion, Option<(Arc<File>, RegionLayout)>),
    /// The frontend's region was refused. Serving the rings without it would lose or repeat requests.
    Refused,
}

/// Indices of the region's spare bytes.
const FLUSH_FAILED: usize = 0;
const FLUSH_RUNNING: usize = 1;

/// Values of the byte at [`FLUSH_RUNNING`].
const IDLE: u8 = 0;
const RUNNING: u8 = 1;
const TAKING_REPORT: u8 = 2;

/// The end of the last flush of an earlier process.
#[derive(Clone, Copy, Debug)]
pub(super) enum LastFlush {
    /// The flush has ended, and no write is known to be lost.
    Ended,
    /// A flush has failed for good.
    Failed,
    /// The process was killed while it took the kernel's report of failed writes.
    TakingReport,
    /// The process was killed during the flush.
    Running,
}

/// The outcome of flushes, in two bytes. Any thread.
#[derive(Debug)]
pub(super) struct FlushMarks {
    /// 1 if a flush has failed for good: writes are lost.
    failed: SpareByte,
    /// The step of a flush that has not ended.
    running: SpareByte,
}

impl FlushMarks {
    /// Returns `None` if the region has no room for the marks.
    pub(super) fn of(region: &InflightRegion) -> Option<Self> {
        Some(Self {
            failed: region.spare(FLUSH_FAILED)?,
            running: region.spare(FLUSH_RUNNING)?,
        })
    }

    /// Returns what an earlier process has recorded.
    pub(super) fn last(&self) -> LastFlush {
        match (self.failed.get(), self.running.get()) {
            (0, IDLE) => LastFlush::Ended,
            (0, TAKING_REPORT) => LastFlush::TakingReport,
            (0, _) => LastFlush::Running,
            _ => LastFlush::Failed,
        }
    }
}

impl FlushWitness for FlushMarks {
    fn taking_report(&self) {
        self.running.set(TAKING_REPORT);
    }

    fn begun(&self) {
        self.running.set(RUNNING);
    }

    fn succeeded(&self) {
        self.running.set(IDLE);
    }

    fn failed(&self) {
        self.failed.set(1);
        self.running.set(IDLE);
    }
}
