//! A handle to a disk that is being served, for threads that change the node below it.
//!
//! Its functions may wait for the disk, so threads that must not wait do not call them.

use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::image_lock::{HeldTurn, SharedTurn, TakeError};
use super::position::AskedPositions;
use super::shard::{Route, Shard};
use super::state::DeviceState;
use crate::aio::{Gone, Remote};
use crate::engine::{self, DiskView, NodeControl, NodeLock, OverlayError, Plan};
use crate::io::IoOp;
use crate::storage::LockError;
use crate::throttle::{Group, Member};

/// A disk, for threads that change the node below it.
#[derive(Debug)]
pub struct DiskHandle {
    pub(super) state: Arc<DeviceState>,
    pub(super) control: Arc<NodeControl>,
    pub(super) turn: SharedTurn,
    route: Mutex<Route>,
    shards: Vec<Remote<Shard>>,
    /// Held while the queues are quiesced.
    quiescing: Mutex<()>,
}

/// The reason why a disk cannot use another node.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplaceError {
    /// An IOThread has ended.
    #[error(transparent)]
    Gone(#[from] Gone),
    /// The engine is not available on an IOThread.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// The image is in use.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The flush of the old node failed, so its writes may not be stable.
    #[error("cannot flush before the node is reopened")]
    Flush(#[source] io::Error),
    /// The new node cannot be put above the old one.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// The last flush of the old node failed.
    #[error("cannot flush before the snapshot")]
    Snapshot(#[source] io::Error),
}

impl DiskHandle {
    pub(super) fn new(
        state: Arc<DeviceState>,
        control: NodeControl,
        writes: bool,
        route: Route,
        shards: Vec<Remote<Shard>>,
    ) -> Arc<Self> {
        state.facts.set_node(route.plan, &route.view.node);
        Arc::new(Self {
            state,
            control: Arc::new(control),
            turn: SharedTurn::new(writes),
            route: Mutex::new(route),
            shards,
            quiescing: Mutex::new(()),
        })
    }

    /// Returns the disk below, as this disk uses it now.
    pub fn view(&self) -> Arc<DiskView> {
        self.state.below.view()
    }

    /// Returns how I/O is executed.
    pub fn engine(&self) -> Plan {
        self.route().plan
    }

    /// Returns the logical block size that the disk announces.
    pub fn block_size(&self) -> u32 {
        self.state.limits.logical_block_size
    }

    /// Returns whether the disk was made inactive, and does not need the image's lock.
    pub fn is_inactive(&self) -> bool {
        self.turn.get().is_waived()
    }

    /// Reports requests that take at least `slower_than` to the listener of the disk's notices, for `time` from now on.
    pub fn trace(&self, slower_than: Duration, time: Duration) {
        self.state.trace.set(slower_than, time);
    }

    /// Asks the IOThreads where the rings stand, without waiting.
    pub fn ask_positions(&self) -> AskedPositions {
        let (answers, asked) = AskedPositions::new();
        for shard in &self.shards {
            let answers = answers.clone();
            // Fails only if the IOThread has ended, and its rings with it. The caller may not wait for the answer.
            let _ = shard.post(move |shard| drop(answers.send(shard.positions())));
        }
        asked
    }

    /// Waits until the IOThreads have done what they were told before.
    pub fn settle(&self) {
        for shard in &self.shards {
            // Fails only if the IOThread has ended, and then there is nothing to wait for.
            let _ = shard.call(|_| ());
        }
    }

    /// Locks the image, drops what this host has cached of it, and executes all requests from then on. Returns whether
    /// the size of the disk has changed.
    ///
    /// # Errors
    /// The image is in use, or its state cannot be found out. The disk stays inactive.
    pub fn activate(&self) -> Result<bool, TakeError> {
        let mut turn = self.turn.get();
        turn.waive(false);
        let taken = turn.take(&self.state.below, |op| self.control.run(op));
        match taken {
            Ok(_) => {
                self.set_inactive(false);
                // Whoever has asked for this may write at once.
                self.settle();
            }
            Err(_) => turn.waive(true),
        }
        taken
    }

    /// Executes only reads from now on, makes everything stable, and releases the lock of the image until
    /// [`activate`](Self::activate).
    ///
    /// # Errors
    /// The flush failed. The disk stays active.
    pub fn deactivate(self: &Arc<Self>) -> io::Result<()> {
        self.set_inactive(true);
        let quiesced = self.quiesce().map_err(io::Error::other)?;
        // In this order, as in `Quiesced::prepare`.
        let mut turn = self.turn.get();
        let handed_over = turn.hand_over(&self.view().node, |op| self.control.run(op));
        match handed_over {
            Ok(()) => turn.waive(true),
            Err(_) => self.set_inactive(false),
        }
        drop(quiesced);
        handed_over
    }

    /// Starts a flush, so that little is left for the one that lets another process take over. Returns `None` if there will
    /// be none.
    pub(crate) fn flush_ahead(&self) -> Option<Receiver<io::Result<()>>> {
        match self.view().node.needs_settling() {
            true => self.control.start(IoOp::Flush).ok(),
            false => None,
        }
    }

    /// Makes the disk inactive as it was in another process. It has no requests yet, and no lock.
    pub(crate) fn inherit_inactive(&self) {
        self.set_inactive(true);
        self.turn.get().waive(true);
    }

    fn set_inactive(&self, inactive: bool) {
        for shard in &self.shards {
            // Fails only if the IOThread has ended, and then no request is executed.
            let _ = shard.post(move |shard| shard.set_inactive(inactive));
        }
    }

    /// Keeps all requests away from the node below until the result is dropped. Returns when the node has none.
    ///
    /// # Errors
    /// An IOThread has ended.
    pub fn quiesce(self: &Arc<Self>) -> Result<Quiesced<'_>, Gone> {
        let (quiesced, drained) = self.begin_quiesce()?;
        // Ends when every queue has sent its message, and dropped its sender.
        while drained.recv().is_ok() {}
        Ok(quiesced)
    }

    /// As [`quiesce`](Self::quiesce), but gives up at `deadline`. Returns `None` then, and the disk goes on.
    ///
    /// # Errors
    /// An IOThread has ended.
    pub fn quiesce_until(self: &Arc<Self>, deadline: Instant) -> Result<Option<Quiesced<'_>>, Gone> {
        let (quiesced, drained) = self.begin_quiesce()?;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match drained.recv_timeout(left) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => return Ok(Some(quiesced)),
            }
        }
    }

    /// Tells all queues to leave the node alone. The receiver is disconnected when they do.
    fn begin_quiesce(self: &Arc<Self>) -> Result<(Quiesced<'_>, Receiver<()>), Gone> {
        let quiesced = Quiesced {
            handle: self,
            _alone: self.quiescing.lock().unwrap_or_else(PoisonError::into_inner),
        };
        let (done, drained) = mpsc::channel();
        for shard in &self.shards {
            let done = done.clone();
            shard.post(move |shard| shard.quiesce(&done))?;
        }
        Ok((quiesced, drained))
    }

    fn route(&self) -> MutexGuard<'_, Route> {
        // Consistent even after a panic: each change is one assignment.
        self.route.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A disk whose node has no request of it. It goes on when this is dropped.
#[derive(Debug)]
pub struct Quiesced<'a> {
    handle: &'a Arc<DiskHandle>,
    _alone: MutexGuard<'a, ()>,
}

impl<'a> Quiesced<'a> {
    /// Prepares to use another view, engine and throttle group. Nothing changes yet.
    ///
    /// # Errors
    /// See [`ReplaceError`].
    pub fn prepare(
        &'a self,
        view: DiskView,
        plan: Plan,
        group: Option<&Arc<Group>>,
    ) -> Result<Replacement<'a>, ReplaceError> {
        let route = self.next_route(view, plan, group);
        let (turn, current) = (self.handle.turn.get(), self.handle.view());
        let lock = match Arc::ptr_eq(&route.view.node, &current.node) {
            true => None,
            false => Some(turn.lock_next(&current.node, &route.view)?),
        };
        if lock.is_some() && turn.may_be_dirty() {
            // A node does not know which writes of another one have failed.
            let flushed = self.handle.control.run(IoOp::Flush);
            flushed.map_err(ReplaceError::Flush)?;
        }
        let replacement = Replacement {
            handle: self.handle,
            turn,
            lock: lock.map(NextLock::Instead),
            route: Some(route.clone()),
        };
        self.prepare_shards(&route)?;
        Ok(replacement)
    }

    /// As [`prepare`](Self::prepare) with a node whose backing file is the current one. That one is left as a reader needs
    /// it.
    ///
    /// # Errors
    /// See [`ReplaceError`].
    pub fn prepare_above(
        &'a self,
        view: DiskView,
        plan: Plan,
        group: Option<&Arc<Group>>,
    ) -> Result<Replacement<'a>, ReplaceError> {
        let route = self.next_route(view, plan, group);
        let turn = self.handle.turn.get();
        let lock = turn.lock_above(&route.view)?;
        let replacement = Replacement {
            handle: self.handle,
            turn,
            lock: Some(NextLock::Above(lock)),
            route: Some(route.clone()),
        };
        self.prepare_shards(&route)?;
        // Last, because the old node is not ready for writes afterwards until it needs to be.
        if replacement.turn.may_be_dirty() {
            let flushed = self.handle.control.run(IoOp::FlushAtRest);
            flushed.map_err(ReplaceError::Snapshot)?;
        }
        Ok(replacement)
    }

    fn next_route(&self, view: DiskView, plan: Plan, group: Option<&Arc<Group>>) -> Route {
        let mut route = self.handle.route().clone();
        route.member = member(route.member.take(), group);
        (route.view, route.plan) = (Arc::new(view), plan);
        route
    }

    fn prepare_shards(&self, route: &Route) -> Result<(), ReplaceError> {
        for shard in &self.handle.shards {
            let route = route.clone();
            shard.call(move |shard| shard.prepare(&route))??;
        }
        Ok(())
    }
}

/// Returns the disk's membership in `group`: the old one, if that is in the same group.
fn member(old: Option<Arc<Member>>, group: Option<&Arc<Group>>) -> Option<Arc<Member>> {
    let group = group?;
    let same = old.filter(|member| Arc::ptr_eq(member.group(), group));
    Some(same.unwrap_or_else(|| group.join()))
}

impl Drop for Quiesced<'_> {
    fn drop(&mut self) {
        for shard in &self.handle.shards {
            // Fails only if the IOThread has ended, and its queues with it.
            let _ = shard.post(|shard| shard.resume());
        }
    }
}

/// A prepared change. Dropping it without [`commit`](Self::commit) changes nothing.
#[derive(Debug)]
pub struct Replacement<'a> {
    handle: &'a DiskHandle,
    turn: HeldTurn<'a>,
    /// The lock of another node.
    lock: Option<NextLock>,
    route: Option<Route>,
}

/// The lock of the next node.
#[derive(Debug)]
enum NextLock {
    /// The old one is released.
    Instead(Option<NodeLock>),
    /// The old node becomes the backing file, and stays locked for reading.
    Above(Option<NodeLock>),
}

impl Replacement<'_> {
    /// Changes the disk. Returns whether its size has changed.
    pub fn commit(mut self) -> bool {
        let Some(route) = self.route.take() else {
            return false;
        };
        for shard in &self.handle.shards {
            let _ = shard.post(|shard| shard.commit());
        }
        let before = self.handle.state.capacity();
        let old = self.handle.view();
        self.handle.state.below.replace(Arc::clone(&route.view));
        match self.lock.take() {
            None => {}
            Some(NextLock::Instead(lock)) => self.turn.replace(lock),
            Some(NextLock::Above(lock)) => {
                old.node.stop_writing();
                self.turn.put_above(lock);
            }
        }
        self.handle.state.facts.set_node(route.plan, &route.view.node);
        *self.handle.route() = route;
        self.handle.state.capacity() != before
    }
}

impl Drop for Replacement<'_> {
    fn drop(&mut self) {
        if self.route.is_some() {
            for shard in &self.handle.shards {
                let _ = shard.post(|shard| shard.cancel());
            }
        }
    }
}
