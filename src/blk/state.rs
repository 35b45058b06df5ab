//! The state of a disk that all threads share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use std::sync::atomic::AtomicBool;

use super::facts::DiskFacts;
use super::failures::Failures;
use super::notice::Notices;
use super::request::{ID_LEN, Rules};
use super::trace::Trace;
use crate::engine::{BlockNode, DiskView};
use crate::log_limit::LogLimit;
use crate::storage::{FlushWitness, Limits};

/// The state of a disk that the control thread and the IOThreads share.
#[derive(Debug)]
pub struct DeviceState {
    /// The disk's name in messages: the image's path.
    pub name: String,
    /// The disk below.
    pub below: Below,
    /// The limits that the disk announces.
    pub limits: Limits,
    /// The answer to GET_ID, padded with NULs.
    pub serial: [u8; ID_LEN],
    /// Notifications are coalesced.
    pub batch_notifications: AtomicBool,
    /// The driver has put a request into one of the rings.
    pub had_requests: AtomicBool,
    /// A frontend of this disk has filled one of its eventfds.
    pub fills_eventfds: Arc<AtomicBool>,
    /// Requests that the disk could not execute.
    pub failures: Failures,
    /// Facts for threads that show them.
    pub facts: Arc<DiskFacts>,
    /// Limits the log lines about this disk.
    pub log: LogLimit,
    /// Which requests are reported as slow.
    pub trace: Trace,
}

/// The block node below a disk, as the disk uses it now. It may be replaced. Queues have copies, and do not come here
/// for each request.
#[derive(Debug)]
pub struct Below(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    view: Arc<DiskView>,
    /// Records the outcome of flushes for the next process.
    witness: Option<Arc<dyn FlushWitness>>,
}

impl Below {
    /// Makes a place with this view.
    pub fn new(view: DiskView) -> Self {
        Self(Mutex::new(Inner {
            view: Arc::new(view),
            witness: None,
        }))
    }

    /// Returns the current view.
    pub fn view(&self) -> Arc<DiskView> {
        Arc::clone(&self.lock().view)
    }

    /// Replaces the view.
    pub(super) fn replace(&self, view: Arc<DiskView>) {
        let mut inner = self.lock();
        if let Some(witness) = &inner.witness
            && !Arc::ptr_eq(&inner.view.node, &view.node)
        {
            view.node.replace_flush_witness(None, Some(Arc::clone(witness)));
            inner.view.node.replace_flush_witness(Some(witness), None);
        }
        inner.view = view;
    }

    /// Sets the witness that records the outcome of flushes through the page cache. It is told at once if flushes have
    /// failed for good.
    pub fn set_flush_witness(&self, witness: Option<Arc<dyn FlushWitness>>) {
        let mut inner = self.lock();
        let old = std::mem::replace(&mut inner.witness, witness.clone());
        inner.view.node.replace_flush_witness(old.as_ref(), witness);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Consistent even after a panic: nothing panics between the assignments.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DeviceState {
    /// Creates the state of a disk that offers all that its node can do.
    pub fn new(name: impl Into<String>, node: Arc<BlockNode>) -> Self {
        Self::with_view(name, DiskView::whole(node))
    }

    /// As [`new`](Self::new), for a part of a node.
    pub fn with_view(name: impl Into<String>, view: DiskView) -> Self {
        Self {
            name: name.into(),
            limits: *view.node.limits(),
            below: Below::new(view),
            serial: [0; ID_LEN],
            batch_notifications: AtomicBool::new(true),
            had_requests: AtomicBool::new(false),
            fills_eventfds: Arc::default(),
            failures: Failures::default(),
            facts: Arc::default(),
            log: LogLimit::new(),
            trace: Trace::default(),
        }
    }

    /// Returns where the disk's threads tell what happens.
    pub fn notices(&self) -> &Notices {
        &self.failures.notices
    }

    /// Returns the size of the disk in bytes, rounded down to whole logical blocks.
    pub fn capacity(&self) -> u64 {
        self.capacity_of(&self.below.view())
    }

    #[inline]
    fn capacity_of(&self, view: &DiskView) -> u64 {
        let size = view.size();
        size - size % u64::from(self.limits.logical_block_size)
    }

    /// Returns the rules for requests that are taken now from a queue which uses `view`.
    #[inline]
    pub(super) fn rules(&self, view: &DiskView, write_through: bool, inactive: bool) -> Rules<'_> {
        let limits = &self.limits;
        Rules {
            start: view.start,
            capacity: self.capacity_of(view),
            block_size: limits.logical_block_size,
            read_only: limits.read_only | inactive,
            inactive,
            discard: limits.discard_granularity > 0,
            write_zeroes: limits.write_zeroes,
            unmap: view.unmap,
            write_through,
            serial: &self.serial,
        }
    }
}
