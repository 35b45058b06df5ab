//! The errors of the sandbox.

use std::error::Error as StdError;
use std::io;

use super::thread_kind::ThreadKind;
use crate::account;

/// The process could not be sandboxed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The process cannot become the other user.
    #[error(transparent)]
    Account(#[from] account::Error),
    /// The kernel lacks a part of the sandbox.
    #[error("the sandbox is incomplete: {0}")]
    Missing(String),
    /// A step that every supported kernel offers failed.
    #[error("sandbox: {what}")]
    Rights {
        /// The step that failed.
        what: &'static str,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The filters cannot be compiled for this machine.
    #[error("sandbox: cannot compile the system call filters")]
    Compile(#[source] Box<dyn StdError + Send + Sync>),
    /// The kernel refused a thread's filter.
    #[error("sandbox: cannot install the {kind} thread's system call filter")]
    Install {
        /// The kind of the thread.
        kind: ThreadKind,
        /// The error of the operating system.
        source: io::Error,
    },
}

impl Error {
    pub(super) fn compile(source: impl StdError + Send + Sync + 'static) -> Self {
        Self::Compile(Box::new(source))
    }

    pub(super) fn rights(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Rights { what, source }
    }
}
