//! The sandbox: takes away the rights that the process does not need to serve a guest.
//!
//! This happens in two steps. [`Sandbox::new`] confines the process while it has one thread, so that every later thread
//! inherits the limits: no capabilities, no new privileges, no files by name (Landlock), no core files.
//! [`Sandbox::enter`] then limits each thread to the system calls that its kind needs (seccomp filters), before it sees
//! the first byte of a frontend. By then, the thread has made all the calls it needs only once. `calls` has the list.
//!
//! The sandbox knows nothing of disks and guests. It cannot give back what it has taken away.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

mod calls;
mod error;
mod fatal;
mod files;
mod filter;
mod rights;
mod thread_kind;
mod violation;

pub use calls::Call;
pub use error::Error;
use filter::{Filters, Violation};
use rustix::thread::{CapabilitySet, set_keep_capabilities};
pub use thread_kind::ThreadKind;

use crate::account::Account;
use crate::error_chain::chain;
use crate::log_limit::LogLimit;
use crate::sys::seccomp;

/// Limits the warning about a missing filter, which every new worker would repeat.
static INHERITED_ONLY: LogLimit = LogLimit::new();

/// The sandbox that the user asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Everything that the kernel supports.
    #[default]
    Auto,
    /// A complete sandbox; anything less is an error.
    On,
    /// Like `Auto`, but the kernel only logs forbidden system calls.
    Log,
    /// No sandbox.
    Off,
}

/// The sockets and the account that the sandboxed process keeps.
#[derive(Clone, Copy, Debug, Default)]
pub struct Keep<'a> {
    /// Sockets to remove when the process ends.
    pub sockets: &'a [&'a Path],
    /// The user and group to become.
    pub account: Option<&'a Account>,
}

/// The sandbox of this process. Clones share it.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// The system call filters, or `None` without filters.
    filters: Option<Arc<Filters>>,
    allows_names: bool,
}

thread_local! {
    /// The kind of thread whose filters this thread has.
    static ENTERED: Cell<Option<ThreadKind>> = const { Cell::new(None) };
}

impl Sandbox {
    /// Confines the process, which must have only one thread and have opened every file it needs.
    ///
    /// If the kernel lacks a part of the sandbox, this is an error or one line in the log, depending on `mode`.
    ///
    /// # Errors
    /// The process cannot become the other user, a step failed, or a part is missing and `mode` is [`Mode::On`].
    pub fn new(mode: Mode, keep: Keep<'_>) -> Result<Self, Error> {
        let rules = (mode != Mode::Off).then(|| files::Rules::new(keep.sockets));
        if mode != Mode::Off {
            rights::empty_bounding_set();
        }
        if let Some(account) = keep.account {
            account.become_it()?;
        }
        let Some(rules) = rules else {
            tracing::warn!("no sandbox: a guest that exploits a bug in this process gains all its rights");
            return Ok(Self {
                filters: None,
                allows_names: true,
            });
        };
        rights::drop_capabilities().map_err(Error::rights("cannot drop capabilities"))?;
        rights::no_new_privileges().map_err(Error::rights("cannot set no_new_privs"))?;
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
            allows_names: false,
        })
    }

    /// Confines a helper process, which has one thread, for good: it can reach names beneath `directories`, and becomes
    /// the user. It keeps the capabilities that make it independent of the owners of these files, if it has them.
    ///
    /// # Errors
    /// A step failed, or a part is missing and `mode` is [`Mode::On`].
    pub fn confine_helper(
        mode: Mode,
        directories: &[OwnedFd],
        account: Option<&Account>,
    ) -> Result<(), Error> {
        let kept = CapabilitySet::DAC_OVERRIDE | CapabilitySet::CHOWN | CapabilitySet::FOWNER;
        confine_process(kept, account)?;
        // After the last change of user and capabilities, which undo this.
        rights::die_with_parent().map_err(Error::rights("cannot follow the daemon"))?;
        let rules = files::Rules::beneath(directories.iter().map(OwnedFd::as_fd));
        Self::enter_process(mode, ThreadKind::Helper, rules)
    }

    /// Confines a process that connects to a server, which has one thread, for good: it can connect to a Unix socket at
    /// this path, or to these TCP ports, and becomes the user.
    ///
    /// # Errors
    /// As [`confine_helper`](Self::confine_helper).
    pub fn confine_connector(
        mode: Mode,
        socket: Option<&Path>,
        ports: &[u16],
        account: Option<&Account>,
    ) -> Result<(), Error> {
        if mode == Mode::Off {
            return account.map_or(Ok(()), |account| Ok(account.become_it()?));
        }
        let rules = files::Rules::connecting(socket, ports);
        confine_process(CapabilitySet::empty(), account)?;
        Self::enter_process(mode, ThreadKind::Connector, rules)
    }

    /// Confines the calling thread, and the threads that it creates, to what librbd needs: connections to any TCP port, and
    /// no file. The thread becomes the user.
    ///
    /// # Errors
    /// As [`confine_helper`](Self::confine_helper).
    pub fn confine_ceph(mode: Mode, account: Option<&Account>) -> Result<(), Error> {
        if mode != Mode::Off {
            rights::empty_bounding_set();
        }
        if let Some(account) = account {
            account.become_it()?;
        }
        if mode == Mode::Off {
            return Ok(());
        }
        rights::drop_capabilities().map_err(Error::rights("cannot drop capabilities"))?;
        rights::no_new_privileges().map_err(Error::rights("cannot set no_new_privs"))?;
        Self::enter_process(mode, ThreadKind::Ceph, files::Rules::to_cluster())
    }

    /// Enforces the rules and the filter of a helper process, or of a thread with its own rules.
    fn enter_process(
        mode: Mode,
        kind: ThreadKind,
        rules: Result<files::Rules, files::Error>,
    ) -> Result<(), Error> {
        // The daemon itself logs what this kernel lacks.
        match rules.and_then(files::Rules::enforce) {
            Ok(false) if mode == Mode::On => {
                return Err(Error::Missing("this kernel has no Landlock".to_owned()));
            }
            Err(error) if mode == Mode::On => {
                return Err(Error::Missing(format!("Landlock: {}", chain(&*error))));
            }
            Ok(_) | Err(_) => {}
        }
        match Self::filters(mode) {
            Ok(filters) => filters
                .install(kind, false)
                .map_err(|source| Error::Install { kind, source }),
            Err(error) if mode == Mode::On => Err(error),
            Err(_) => Ok(()),
        }
    }

    fn filters(mode: Mode) -> Result<Filters, Error> {
        seccomp::probe().map_err(Error::rights("this kernel has no seccomp filters"))?;
        violation::report().map_err(Error::rights("cannot handle SIGSYS"))?;
        Filters::new(match mode {
            Mode::Log => Violation::Log,
            _ => Violation::End,
        })
    }

    /// Returns whether files and sockets can be reached by their names.
    pub fn allows_names(&self) -> bool {
        self.allows_names
    }

    /// Limits the calling thread to the system calls that threads of its kind need.
    ///
    /// # Errors
    /// The kernel refused the filter, for lack of memory.
    pub fn enter(&self, kind: ThreadKind) -> Result<(), Error> {
        let Some(filters) = &self.filters else {
            return Ok(());
        };
        let before = ENTERED.get();
        // Threads inherit filters. Workers that spawn workers would pile them up.
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
    /// If the thread's filter cannot be installed and its creator has one, the thread logs a warning and keeps its
    /// creator's filter. If its creator has none, which is so only at start-up, the process ends.
    ///
    /// # Errors
    /// The operating system cannot create the thread.
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
                        tracing::warn!(
                            suppressed,
                            "{}; the thread keeps its creator's filter",
                            chain(&error)
                        );
                    }
                    body();
                }
                Err(error) => {
                    tracing::error!("{}", chain(&error));
                    // The body may own something that would outlive the process: a socket's file.
                    drop(body);
                    std::process::exit(1);
                }
            }
        })
    }
}

/// Takes all rights but these capabilities from a helper process, which becomes the user.
fn confine_process(kept: CapabilitySet, account: Option<&Account>) -> Result<(), Error> {
    rights::empty_bounding_set();
    set_keep_capabilities(true).map_err(|error| Error::rights("cannot keep capabilities")(error.into()))?;
    if let Some(account) = account {
        account.become_it()?;
    }
    rights::keep_capabilities(kept).map_err(Error::rights("cannot drop capabilities"))?;
    rights::no_new_privileges().map_err(Error::rights("cannot set no_new_privs"))?;
    rights::hide_memory().map_err(Error::rights("cannot hide the process's memory"))
}

/// Returns the rules that allow system calls to threads of this kind.
pub fn allowed(kind: ThreadKind) -> impl Iterator<Item = &'static Call> {
    calls::allowed(kind)
}

/// Returns whether a rule is about threads of this kind. The manager's filter has the rules of all kinds.
pub fn applies(call: &Call, kind: ThreadKind) -> bool {
    calls::applies(call, kind)
}

/// Returns the system calls that fail instead of ending the process, with their error numbers.
pub fn refused() -> impl Iterator<Item = (&'static Call, i32)> {
    calls::REFUSED
        .iter()
        .flat_map(|(calls, errno)| calls.iter().map(|call| (call, *errno)))
}
