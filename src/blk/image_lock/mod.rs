//! The lock of an image, which several processes use in turns.
//!
//! A disk that runs holds the lock. When its last ring has stopped and everything is flushed, it releases the lock.
//! Then the destination of a migration, which has opened the image earlier, can take over. It drops what its host has
//! cached of the image.
//!
//! One thread at a time has the turn ([`SharedTurn`]): the disk's control thread, or a thread that changes the node
//! below. It may wait for the disk meanwhile.

use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::state::Below;
use crate::engine::{BlockNode, DiskView, NodeLock, OverlayError};
use crate::io::IoOp;
use crate::log_limit::LogLimit;
use crate::storage::LockError;

/// The reason why an image cannot be used now.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TakeError {
    /// The image cannot be locked.
    #[error(transparent)]
    Lock(#[from] LockError),

    /// The image is locked, but the state in which others have left it cannot be found out.
    #[error("cannot prepare {} for use: {error}", path.display())]
    Look {
        /// The image's path.
        path: PathBuf,
        /// The error of the call that failed.
        error: io::Error,
    },
}

/// The right to use an image, which one thread has at a time.
#[derive(Debug)]
pub(super) struct SharedTurn {
    /// `None` while a thread has it.
    turn: Mutex<Option<Turn>>,
    is_back: Condvar,
    /// The process ends, or another one takes over: the image stays locked, and is not flushed.
    keeping: AtomicBool,
}

impl SharedTurn {
    /// Creates the right to use an image. `writes`: also to write to it.
    pub(super) fn new(writes: bool) -> Self {
        Self {
            turn: Mutex::new(Some(Turn::new(writes))),
            is_back: Condvar::new(),
            keeping: AtomicBool::new(false),
        }
    }

    /// Waits until no other thread has the turn.
    pub(super) fn get(&self) -> HeldTurn<'_> {
        let mut place = self.lock();
        loop {
            if let Some(turn) = place.take() {
                return HeldTurn {
                    home: self,
                    turn: Some(turn),
                };
            }
            place = self.is_back.wait(place).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The process ends, and the lock with it, or another process takes over both. There is no flush any more: it would
    /// take the kernel's report of a failed write, which the next process has to see.
    pub(super) fn keep(&self, keep: bool) {
        // Relaxed: the rings stop after this, and on the same thread.
        self.keeping.store(keep, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Turn>> {
        // Consistent even after a panic: each change is one assignment.
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The turn of the calling thread, until this is dropped.
#[derive(Debug)]
pub(super) struct HeldTurn<'a> {
    home: &'a SharedTurn,
    turn: Option<Turn>,
}

impl HeldTurn<'_> {
    /// As [`Turn::hand_over`], unless the image is [kept](SharedTurn::keep).
    ///
    /// # Errors
    /// Those of [`Turn::hand_over`].
    pub(super) fn hand_over(
        &mut self,
        node: &BlockNode,
        run: impl FnOnce(IoOp) -> io::Result<()>,
    ) -> io::Result<()> {
        match self.home.keeping.load(Ordering::Relaxed) {
            true => {
                // This does no harm if it fails.
                if self.may_be_dirty() && node.needs_leave() {
                    let _ = run(IoOp::Leave);
                }
                Ok(())
            }
            false => (**self).hand_over(node, run),
        }
    }
}

impl Deref for HeldTurn<'_> {
    type Target = Turn;

    fn deref(&self) -> &Turn {
        self.turn.as_ref().expect("present until the drop")
    }
}

impl DerefMut for HeldTurn<'_> {
    fn deref_mut(&mut self) -> &mut Turn {
        self.turn.as_mut().expect("present until the drop")
    }
}

impl Drop for HeldTurn<'_> {
    fn drop(&mut self) {
        *self.home.lock() = self.turn.take();
        self.home.is_back.notify_one();
    }
}

/// The right to use an image.
#[derive(Debug)]
pub(super) struct Turn {
    writes: bool,
    taken: bool,
    lock: Option<NodeLock>,
    /// Rings may start without the lock. Only reads are executed then.
    waived: bool,
    /// The last flush before a release of the lock failed.
    unflushed: bool,
    log: LogLimit,
}

impl Turn {
    fn new(writes: bool) -> Self {
        Self {
            writes,
            taken: false,
            lock: None,
            waived: false,
            unflushed: false,
            log: LogLimit::new(),
        }
    }

    /// Takes the lock, unless it is held or waived. `run` then drops what this host has cached of the image. Returns
    /// whether the size of the disk has changed.
    ///
    /// # Errors
    /// The image is in use, or its state cannot be found out.
    pub(super) fn take(
        &mut self,
        below: &Below,
        run: impl FnOnce(IoOp) -> io::Result<()>,
    ) -> Result<bool, TakeError> {
        if self.taken || self.waived {
            return Ok(false);
        }
        let view = below.view();
        let (lock, before) = (view.node.lock(view.lock_mode(self.writes))?, view.size());
        run(IoOp::LookAnew).map_err(|error| TakeError::Look {
            path: view.node.path().to_owned(),
            error,
        })?;
        (self.lock, self.taken) = (lock, true);
        view.activity.set(true);
        let resized = view.size() != before;
        tracing::debug!(disk = name(&view.node), resized, "image locked");
        Ok(resized)
    }

    /// Takes the locks that another process has passed: the open files that have them, or `None` where there are no locks.
    /// `run` reads again what that process has changed.
    ///
    /// # Errors
    /// The image is in use by others, or cannot be read.
    pub(super) fn inherit(
        &mut self,
        below: &Below,
        locks: Vec<Option<OwnedFd>>,
        run: impl FnOnce(IoOp) -> io::Result<()>,
    ) -> Result<(), TakeError> {
        let view = below.view();
        let mode = view.lock_mode(self.writes);
        (self.lock, self.taken) = (view.node.inherit_lock(mode, locks)?, true);
        if !view.node.needs_leave() {
            return Ok(());
        }
        run(IoOp::Inherit).map_err(|error| TakeError::Look {
            path: view.node.path().to_owned(),
            error,
        })
    }

    /// Leaves the image as another process of this host can take it over, while nothing is being written. Returns true if
    /// that process has to take the lock itself, because it is released.
    ///
    /// # Errors
    /// The image cannot be left so. It stays locked.
    pub(super) fn settle(
        &mut self,
        node: &BlockNode,
        run: impl FnOnce(IoOp) -> io::Result<()>,
    ) -> io::Result<bool> {
        if self.taken && !node.passes_lock() {
            return self.hand_over(node, run).map(|()| true);
        }
        if self.may_be_dirty() && node.needs_settling() {
            run(IoOp::Settle)?;
        }
        Ok(false)
    }

    /// Returns the open files that have the locks, if the image is taken. `None` among them: there are no locks.
    pub(super) fn taken(&self) -> Option<Vec<Option<BorrowedFd<'_>>>> {
        self.taken
            .then(|| self.lock.as_ref().map(NodeLock::files).unwrap_or_default())
    }

    /// Returns whether rings may start without the lock.
    pub(super) fn is_waived(&self) -> bool {
        self.waived
    }

    /// Lets rings start without the lock from now on, or no longer.
    pub(super) fn waive(&mut self, waived: bool) {
        self.waived = waived;
    }

    /// Makes everything stable with `run`, and releases the lock.
    ///
    /// # Errors
    /// Not everything is stable. The image stays locked, because nobody should use it as if it were complete.
    pub(super) fn hand_over(
        &mut self,
        node: &BlockNode,
        run: impl FnOnce(IoOp) -> io::Result<()>,
    ) -> io::Result<()> {
        if !self.taken {
            return Ok(());
        }
        let flushed = run(IoOp::FlushAtRest);
        self.unflushed = flushed.is_err();
        if let Err(error) = flushed {
            if let Some(suppressed) = self.log.pass("unflushed", "") {
                tracing::error!(
                    disk = name(node), %error, suppressed,
                    "flush failed before releasing the image: writes may be lost; the image stays locked until this \
                     process ends"
                );
            }
            return Err(error);
        }
        (self.lock, self.taken) = (None, false);
        tracing::debug!(disk = name(node), "image handed over");
        Ok(())
    }

    /// Locks the node of `next` as the current one is locked, before it takes the place of that.
    ///
    /// # Errors
    /// The image is in use.
    pub(super) fn lock_next(
        &self,
        current: &BlockNode,
        next: &DiskView,
    ) -> Result<Option<NodeLock>, LockError> {
        let mode = next.lock_mode(self.writes);
        if !self.taken {
            return Ok(None);
        }
        if let Some(lock) = &self.lock
            && current.is_same_image(&next.node)
            && let Some(shared) = next.node.share_lock(lock, mode)
        {
            // There is no moment without the lock.
            return Ok(Some(shared));
        }
        next.node.lock(mode)
    }

    /// Locks the node of `next`, which goes above the current one.
    ///
    /// # Errors
    /// The image is in use, or cannot be prepared for writes.
    pub(super) fn lock_above(&self, next: &DiskView) -> Result<Option<NodeLock>, OverlayError> {
        match self.taken {
            true => next.node.lock_above(),
            false => Ok(None),
        }
    }

    /// Keeps this lock, and of the old one only what a backing file needs.
    pub(super) fn put_above(&mut self, lock: Option<NodeLock>) {
        let below = if self.taken { self.lock.take() } else { return };
        self.lock = match (lock, below) {
            (Some(mut lock), Some(below)) => {
                lock.put_above(below);
                Some(lock)
            }
            (lock, below) => lock.or(below),
        };
    }

    /// Returns whether the node may have writes of this disk that are not stable.
    pub(super) fn may_be_dirty(&self) -> bool {
        self.taken && self.writes
    }

    /// Keeps this lock instead of the old one, which is released.
    pub(super) fn replace(&mut self, lock: Option<NodeLock>) {
        if self.taken {
            self.lock = lock;
        }
    }
}

fn name(node: &BlockNode) -> String {
    node.path().display().to_string()
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(lock) = self.lock.take()
            && self.unflushed
        {
            lock.keep();
        }
    }
}

#[cfg(test)]
mod tests;
