//! The state of an image that is written to, besides its tables. Any thread.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::claims::Claims;
use super::clusters::Clusters;
use crate::qcow2::Header;

/// The state of an image that is written to.
#[derive(Debug, Default)]
pub(super) struct State {
    /// The image was locked for writing.
    may_write: AtomicBool,
    /// The image is ready for writes, and locked.
    in_use: AtomicBool,
    /// The image turned out to be corrupt. Nothing is written any more.
    pub(super) is_corrupt: AtomicBool,
    /// The incompatible features in the image.
    pub(super) features: AtomicU64,
    /// Clusters whose entries are being changed.
    pub(super) claims: Claims,
    /// Held while an L2 table is made.
    pub(super) l1: Mutex<()>,
    /// Present from the first allocation on, until the image is at rest.
    pub(super) clusters: Mutex<Option<Clusters>>,
    /// Notified when clusters have been reserved.
    pub(super) grown: Condvar,
}

impl State {
    /// Says whether the image is locked for writing.
    pub(super) fn set_may_write(&self, may_write: bool) {
        // Relaxed: requests come only after the lock was taken, which orders this.
        self.may_write.store(may_write, Ordering::Relaxed);
    }

    pub(super) fn may_write(&self) -> bool {
        self.may_write.load(Ordering::Relaxed)
    }

    /// Says whether the image is ready for writes, and locked.
    pub(super) fn set_in_use(&self, in_use: bool) {
        self.in_use.store(in_use, Ordering::Relaxed);
    }

    pub(super) fn in_use(&self) -> bool {
        self.in_use.load(Ordering::Relaxed)
    }

    /// Forgets what it knows, because another process has used the image.
    pub(super) fn look_anew(&self, header: &Header) {
        self.features.store(header.incompatible, Ordering::Relaxed);
        self.is_corrupt.store(header.corrupt, Ordering::Relaxed);
        *self.clusters() = None;
    }

    /// Waits until another thread has reserved clusters, or failed to.
    pub(super) fn wait_for_growth(&self) {
        let mut place = self.clusters();
        while place.as_ref().is_some_and(|clusters| clusters.is_growing) {
            place = self.grown.wait(place).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn clusters(&self) -> MutexGuard<'_, Option<Clusters>> {
        // After a panic, clusters may be leaked, but none is used twice: they are taken before they are used.
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
