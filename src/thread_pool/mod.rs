//! The thread pool: blocking work runs on workers and comes back on the thread of the pool's [`AioContext`].
//!
//! A pool belongs to one context, whose thread submits, cancels and gets the results. Workers take works in the order
//! of submission; results come through one bottom half, inside one [`DeferScope`](crate::defer::DeferScope) per batch.
//!
//! How many workers there are follows the load: works that do not block are run by few, which then take several at
//! once; works that block get a worker each, up to the limit. Idle workers end.
//!
//! A thread that cannot be created wedges nothing: its counters are rolled back, the workers that exist go on, and
//! with none at all the context's thread runs the works itself. Creation is retried.

mod core;
mod figures;
mod future;
#[cfg(all(test, loom))]
mod loom;
mod pool;
mod spawner;
mod state;
mod worker;

pub use self::{
    core::Outcome,
    figures::{Counters, ThreadPoolParams},
    pool::{ThreadPool, WorkId},
    spawner::Spawner,
};
use crate::aio::AioContext;

/// Something that blocks.
///
/// A submitted work is owned by the pool until `complete` gives it back to its owner, which may keep the box for the
/// next time: the pool allocates nothing per work.
pub trait Work: Send + 'static {
    /// Does it, on a worker (or on the context's thread if there can be no worker).
    fn run(&mut self);

    /// Called exactly once, on the context's thread. It may submit, cancel and run the loop.
    fn complete(self: Box<Self>, ctx: &AioContext, outcome: Outcome);
}
