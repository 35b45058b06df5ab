//! The next steps that the pool's state asks for.

use super::shares::ShareId;

/// Actions to carry out after releasing the lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub(super) struct Actions {
    /// The number of sleeping workers to wake.
    pub(super) wake: usize,
    /// Create a thread from a bottom half of the context (which asks `begin_spawn`).
    pub(super) spawn: bool,
    /// Call `tick` after a while.
    pub(super) watch: Option<Watch>,
    /// Run queued jobs on the context's thread: no worker exists and none can be created.
    pub(super) inline: bool,
}

/// The reason to call `tick`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watch {
    /// Jobs are queued, and all workers may be blocked. In a serial pool: the worker may be blocked and not have
    /// delivered the jobs it finished before.
    Stall,
    /// A thread could not be created.
    Retry,
}

/// A worker's next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Run the jobs in the batch, which belong to this share.
    Run(ShareId),
    /// Wait for a wakeup or for the idle time to pass, then ask `woken`.
    Sleep,
    /// End.
    Exit,
}

/// A worker's next step after a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    /// Ask for work.
    Look,
    /// Keep waiting: the wakeup was not for this worker.
    SleepOn,
    /// End.
    Exit,
}
