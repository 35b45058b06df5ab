//! The event loop: an [`AioContext`] is one thread's bottom halves, fd handlers, timers, pollers and local tasks.
//!
//! A context belongs to the thread that made it and is not `Send`; other threads reach it through an [`AioHandle`].
//! Callbacks are `Fn`, because a callback may run the loop, which may call it again. The context holds no borrow and no
//! lock while a callback runs: the callback may add, remove, arm, schedule and delete anything, including itself.
//!
//! Registrations end on drop: a bottom half is deleted, an fd handler removed, a timer disarmed. They do not keep the
//! context alive.
//!
//! The loop knows nothing of disks, queues or protocols.

pub(crate) mod adaptive;
mod bh_word;
mod bottom_half;
pub(crate) mod busy_wait;
pub(crate) mod clock;
mod commands;
mod context;
#[cfg(test)]
mod counting;
pub(crate) mod crowding;
mod error;
mod fd;
mod figures;
mod handle;
mod io_thread;
#[cfg(all(test, loom))]
pub(crate) mod loom;
mod notify;
mod poller;
mod registrations;
mod remote;
mod task;
mod timer;

pub use event_manager::EventSet;

pub use self::bh_word::BhHandle;
pub use self::bottom_half::BottomHalf;
pub use self::context::{AioContext, WeakAioContext};
pub use self::error::Error;
pub use self::fd::FdHandler;
pub use self::figures::LoopFigures;
pub use self::handle::AioHandle;
pub use self::io_thread::{IoThread, IoThreadConfig};
pub use self::poller::{InProgress, Poller, PollerHandle, RemoteWork};
pub use self::remote::{Gone, Remote};
pub use self::timer::Timer;
