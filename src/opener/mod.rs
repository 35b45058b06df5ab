//! A helper process that opens images and makes sockets beneath directories that the operator has named.
//!
//! The sandbox takes all names away from the daemon, but disks that are added later may have names. So the daemon starts
//! this process before it opens anything, and asks it over a socket. The helper has no other files, knows nothing of
//! guests, and sees no data. Landlock limits it to the directories, `openat2` keeps each path beneath its own directory,
//! and a filter leaves it a few system calls. It ends with the daemon; the daemon survives its end.
//!
//! `Opener` is the daemon's side, on the main thread, and never waits. `helper` is the other process, with one thread.

mod client;
mod files;
mod helper;
mod message;
mod place;
mod sockets;

use std::io;
use std::path::PathBuf;

pub(crate) use client::{Answered, Opener};
pub(crate) use message::{Answer, FileRequest, Refusal, SocketRequest};
pub(crate) use place::Place;

/// The helper cannot be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A directory cannot be opened.
    #[error("cannot open directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The process cannot be created, or has ended at once.
    #[error("cannot start the process that opens files there")]
    Process(#[from] io::Error),
    /// The process cannot do its work, or cannot be confined.
    #[error("the process that opens files there: {0}")]
    Setup(String),
}
