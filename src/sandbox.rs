//! The sandbox: what is left of the process's rights once it serves a guest.
//!
//! In two steps. [`Sandbox::new`] confines the process while it has one thread, so that every later one inherits it:
//! no capabilities, no new privileges, no files by name (Landlock), no core files. [`Sandbox::enter`] then gives each
//! thread the system calls that its kind needs (seccomp filters), before it sees the first byte of a frontend; what it
//! is not to use any more it has used until then. `calls` is the list.
//!
//! It knows nothing of disks and guests. What it takes away it cannot give back.

use std::cell::Cell;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

mod calls;
mod files;
mod filter;
mod rights;

pub use calls::Call;
use filter::{Filters, Violation};

use crate::account::{self, Account};
use crate::log_limit::LogLimit;

/// Each new worker finds out again.
static INHERITED_ONLY: LogLimit = LogLimit::new();

/// The kinds of threads there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadKind {
    /// Signals.
    Main,
    /// The socket and its messages.
    Control,
    /// Rings and requests.
    IoThread,
    /// Blocking calls on the disk.
    Worker,
}

impl ThreadKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Main, Self::Control, Self::IoThread, Self::Worker];
}

impl fmt::Display for ThreadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Main => "main",
            Self::Control => "control",
            Self::IoThread => "IOThread",
            Self::Worker => "worker",
        })
    }
}

/// How much of a sandbox is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Whatever the kernel has.
    #[default]
    Auto,
    /// All of it, or an error.
    On,
    /// As `Auto`, but a forbidden system call is only logged, by the kernel.
    Log,
    /// None.
    Off,
}

/// Why there is no sandbox.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The other user cannot be had.
    #[error(transparent)]
    Account(#[from] account::Error),
    /// The kernel lacks a part.
    #[error("--sandbox on: {0}; --sandbox auto goes on without")]
    Missing(String),
    /// Something that every kernel does.
    #[error("sandbox: {what}")]
    Rights {
        /// What.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A filter cannot be had for this machine.
    #[error("sandbox: system call filters cannot be made")]
    Compile(#[source] Box<dyn StdError + Send + Sync>),
    /// The kernel does not take a filter that it should know.
    #[error("sandbox: cannot put the {kind} thread's filter over it")]
    Install {
        /// Whose.
        kind: ThreadKind,
        /// Why not.
        source: io::Error,
    },
}

impl Error {
    fn compile(source: impl StdError + Send + Sync + 'static) -> Self {
        Self::Compile(Box::new(source))
    }

    fn rights(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Rights { what, source }
    }
}

/// What the process keeps.
#[derive(Clone, Copy, Debug, Default)]
pub struct Keep<'a> {
    /// A socket to remove at the end.
    pub socket: Option<&'a Path>,
    /// Who it goes on as.
    pub account: Option<&'a Account>,
}

/// The sandbox of this process. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// `None`: no filters.
    filters: Option<Arc<Filters>>,
}

thread_local! {
    /// Whose filters the thread has.
    static ENTERED: Cell<Option<ThreadKind>> = const { Cell::new(None) };
}

impl Sandbox {
    /// Confines the process, which must have one thread only and have opened all that it needs.
    ///
    /// What the kernel lacks is logged in one line, or an error, as `mode` says.
    ///
    /// # Errors
    /// See [`enum@Error`].
    pub fn new(mode: Mode, keep: Keep<'_>) -> Result<Self, Error> {
        let rules = (mode != Mode::Off).then(|| files::Rules::new(keep.socket));
        if mode != Mode::Off {
            rights::empty_bounding_set();
        }
        if let Some(account) = keep.account {
            account.become_it()?;
        }
        let Some(rules) = rules else {
            tracing::warn!(
                "no sandbox: a guest that finds a mistake in this process has all its rights (--sandbox off)"
            );
            return Ok(Self { filters: None });
        };
        rights::drop_capabilities().map_err(Error::rights("cannot give up capabilities"))?;
        rights::no_new_privileges().map_err(Error::rights("cannot forgo new privileges"))?;
        rights::hide_memory().map_err(Error::rights("cannot hide the process's memory"))?;
        let mut missing = Vec::new();
        match rules.and_then(files::Rules::enforce) {
            Ok(true) => {}
            Ok(false) => missing.push("this kernel has no Landlock".to_owned()),
            Err(error) => missing.push(format!("Landlock: {}", chain(&*error))),
        }
        let filters = Self::filters(mode);
        if let Err(error) = &filters {
            missing.push(chain(error));
        }
        if missing.is_empty() {
            tracing::debug!(?mode, "the sandbox is complete");
        } else if mode == Mode::On {
            return Err(Error::Missing(missing.join("; ")));
        } else {
            tracing::warn!("the sandbox is incomplete: {}", missing.join("; "));
        }
        Ok(Self {
            filters: filters.ok().map(Arc::new),
        })
    }

    fn filters(mode: Mode) -> Result<Filters, Error> {
        filter::probe().map_err(Error::rights("this kernel has no seccomp filters"))?;
        Filters::new(match mode {
            Mode::Log => Violation::Log,
            _ => Violation::Kill,
        })
    }

    /// Leaves the calling thread what threads of its kind need.
    ///
    /// # Errors
    /// The kernel is short of memory.
    pub fn enter(&self, kind: ThreadKind) -> Result<(), Error> {
        let Some(filters) = &self.filters else {
            return Ok(());
        };
        let before = ENTERED.get();
        // Threads inherit filters. Those which beget their like would pile them up.
        if before == Some(kind) {
            return Ok(());
        }
        filters
            .install(kind, before.is_some())
            .map_err(|source| Error::Install { kind, source })?;
        ENTERED.set(Some(kind));
        Ok(())
    }

    /// Creates a thread of this kind.
    ///
    /// If its filter cannot be had, a thread whose creator has one goes on with that, after a warning; elsewhere, at the
    /// start, the process ends.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn spawn(
        &self,
        kind: ThreadKind,
        name: String,
        body: impl FnOnce() + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let (sandbox, inherited) = (self.clone(), ENTERED.get());
        Builder::new().name(name).spawn(move || {
            ENTERED.set(inherited);
            match sandbox.enter(kind) {
                Ok(()) => body(),
                Err(error) if inherited.is_some() => {
                    if let Some(suppressed) = INHERITED_ONLY.pass("inherited", "") {
                        tracing::warn!(suppressed, "{}; it has its creator's", chain(&error));
                    }
                    body();
                }
                Err(error) => {
                    tracing::error!("{}", chain(&error));
                    // It may own what would outlive the process: a socket's file.
                    drop(body);
                    std::process::exit(1);
                }
            }
        })
    }
}

/// The rules by which threads of this kind may make system calls.
pub fn allowed(kind: ThreadKind) -> impl Iterator<Item = &'static Call> {
    calls::allowed(kind)
}

/// System calls that fail, with their error numbers, where others would end the process.
pub fn refused() -> impl Iterator<Item = (&'static Call, i32)> {
    calls::REFUSED
        .iter()
        .flat_map(|(calls, errno)| calls.iter().map(|call| (call, *errno)))
}

/// An error and its sources, in one line.
fn chain(error: &dyn StdError) -> String {
    match error.source() {
        None => error.to_string(),
        Some(source) => format!("{error}: {}", chain(source)),
    }
}
