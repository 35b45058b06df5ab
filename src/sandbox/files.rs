//! Landlock: no file can be reached by name any more. The only exception is the removal of the sockets at the end.
//!
//! Files opened earlier stay usable as before, including the image and its device with their ioctls.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, NetPort, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetStatus, Scope,
};

pub(super) type Error = Box<dyn std::error::Error + Send + Sync>;

/// The newest Landlock ABI that we know. An older kernel enforces the part that it knows.
const NEWEST: ABI = ABI::V9;

/// Landlock rules, ready to be enforced.
pub(super) struct Rules(RulesetCreated);

impl Rules {
    /// Makes rules that allow nothing but the removal of files in the directories of `sockets`.
    ///
    /// # Errors
    /// A directory cannot be opened. A kernel without Landlock is no error here.
    pub(super) fn new(sockets: &[&Path]) -> Result<Self, Error> {
        let mut rules = ruleset()?;
        for socket in sockets {
            let directory = PathFd::new(directory(socket))?;
            rules = rules.add_rule(PathBeneath::new(directory, AccessFs::RemoveFile))?;
        }
        Ok(Self(rules))
    }

    /// Makes rules that allow what disks beneath these directories need: to open images, to make sockets and to remove
    /// them.
    ///
    /// The rights of an image that is opened under these rules include truncation and, for a device, its ioctls. They
    /// stay with the descriptor in whichever process it is used.
    ///
    /// # Errors
    /// The kernel refuses a rule. A kernel without Landlock is no error here.
    pub(super) fn beneath<'a>(directories: impl IntoIterator<Item = BorrowedFd<'a>>) -> Result<Self, Error> {
        let access = AccessFs::ReadFile
            | AccessFs::WriteFile
            | AccessFs::Truncate
            | AccessFs::IoctlDev
            // The directory of a socket is locked while the socket is made.
            | AccessFs::ReadDir
            | AccessFs::MakeSock
            | AccessFs::RemoveFile
            // A connection shows whether a socket is stale.
            | AccessFs::ResolveUnix;
        let mut rules = ruleset()?;
        for directory in directories {
            rules = rules.add_rule(PathBeneath::new(directory, access))?;
        }
        Ok(Self(rules))
    }

    /// Makes rules that allow nothing but connections to a Unix socket at this path, or to these TCP ports.
    ///
    /// # Errors
    /// The directory of the socket cannot be opened. A kernel without Landlock is no error here.
    pub(super) fn connecting(socket: Option<&Path>, ports: &[u16]) -> Result<Self, Error> {
        let mut rules = ruleset()?;
        if let Some(socket) = socket {
            // The server may make its socket later, and again.
            let directory = PathFd::new(directory(socket))?;
            rules = rules.add_rule(PathBeneath::new(directory, AccessFs::ResolveUnix))?;
        }
        for port in ports {
            rules = rules.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
        }
        Ok(Self(rules))
    }

    /// Makes rules that allow no file, and connections to any TCP port: OSDs choose theirs.
    ///
    /// # Errors
    /// The kernel refuses the rules. A kernel without Landlock is no error here.
    pub(super) fn to_cluster() -> Result<Self, Error> {
        Ok(Self(
            Ruleset::default()
                .handle_access(AccessFs::from_all(NEWEST))?
                .handle_access(AccessNet::from_all(NEWEST) & !AccessNet::ConnectTcp)?
                .scope(Scope::from_all(NEWEST))?
                .create()?,
        ))
    }

    /// Enforces the rules on this thread and on threads it creates. Returns false if the kernel has no Landlock.
    pub(super) fn enforce(self) -> Result<bool, Error> {
        let status = self.0.restrict_self()?;
        Ok(status.ruleset != RulesetStatus::NotEnforced)
    }
}

/// Makes rules that allow nothing yet.
fn ruleset() -> Result<RulesetCreated, Error> {
    Ok(Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?)
}

/// Returns the directory that contains `path`.
fn directory(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}
