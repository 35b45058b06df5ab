//! Errors of the event loop.

use std::io;
use std::os::fd::RawFd;

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
