//! The thread pool: workers run blocking jobs, and the thread of the pool's [`AioContext`] completes them.
//!
//! A pool belongs to one context, whose thread submits and cancels jobs and gets the results. Workers take jobs in the
//! order of submission. One bottom half delivers the results, inside one [`DeferScope`](crate::defer::DeferScope) per
//! batch.
//!
//! Each disk has a share of the pool, because its jobs may block for ever. Workers take jobs of the shares in turns, and
//! no share can occupy the workers that others need.
//!
//! The number of workers follows the load. Jobs that do not block need few workers, which then take several jobs at
//! once. Jobs that block get a worker each, up to the limit. Idle workers end.
//!
//! If a thread cannot be created, the pool continues: the counters are rolled back and the existing workers stay.
//! Without any worker the context's thread runs the jobs itself. The pool retries the creation later.

mod batch;
mod core;
mod figures;
mod future;
#[cfg(all(test, loom))]
mod loom;
mod pace;
mod pool;
mod shares;
mod spawner;
mod state;
mod steps;
mod worker;

pub use self::batch::Outcome;
pub use self::figures::{Counters, PoolFigures, PoolTotals, ThreadPoolParams};
pub use self::pool::{ThreadPool, WorkId};
pub use self::spawner::Spawner;
use crate::aio::AioContext;

/// A job, which may block.
///
/// The pool owns a submitted job until `complete` gives it back to its owner. The owner may keep the box for the next
/// job: the pool allocates nothing per job.
pub trait Work: Send + 'static {
    /// Does the job, on a worker (or on the context's thread if no worker can be created).
    fn run(&mut self);

    /// Whether somebody waits for this job. A pool may be dropped with jobs in flight that nobody waits for.
    fn is_awaited(&self) -> bool {
        true
    }

    /// Called exactly once, on the context's thread. It may submit and cancel jobs and run the loop.
    fn complete(self: Box<Self>, ctx: &AioContext, outcome: Outcome);
}
