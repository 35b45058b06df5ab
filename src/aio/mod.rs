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
mod context;
mod fd;
mod figures;
mod handle;
mod io_thread;
#[cfg(all(test, loom))]
pub(crate) mod loom;
mod notify;
mod poller;
mod remote;
mod task;
mod timer;

use std::io;
use std::os::fd::RawFd;

pub use event_manager::EventSet;

pub use self::bh_word::BhHandle;
pub use self::bottom_half::BottomHalf;
use self::context::Inner;
pub use self::context::{AioContext, WeakAioContext};
pub use self::fd::FdHandler;
pub use self::figures::LoopFigures;
pub use self::handle::AioHandle;
pub use self::io_thread::{IoThread, IoThreadConfig};
pub use self::poller::{InProgress, Poller, PollerHandle};
pub use self::remote::{Gone, Remote};
pub use self::timer::Timer;

/// An event loop could not be set up or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The epoll fd cannot be created.
    #[error("cannot create an epoll instance")]
    Epoll(#[source] event_manager::Error),
    /// The eventfd that wakes the loop cannot be created.
    #[error("cannot create an eventfd")]
    EventFd(#[source] io::Error),
    /// The timerfd cannot be created or set.
    #[error("cannot create or set a timerfd")]
    TimerFd(#[source] io::Error),
    /// An fd cannot be watched: it is no longer open, not pollable (a regular file), or watched already.
    #[error("cannot watch file descriptor {fd}")]
    AddFd {
        /// The file descriptor.
        fd: RawFd,
        /// The reason for the refusal.
        source: event_manager::Error,
    },
    /// The context has ended.
    #[error("the event loop has ended")]
    ContextGone,
    /// The thread of an IOThread cannot be created.
    #[error("cannot create the thread of IOThread {name:?}")]
    Spawn {
        /// The IOThread's name.
        name: String,
        /// The error of the operating system.
        source: io::Error,
    },
}
