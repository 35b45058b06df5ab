//! Landlock: no file can be reached by name any more. The only exception is the removal of the sockets at the end.
//!
//! Files opened earlier stay usable as before, including the image and its device with their ioctls.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetStatus, Scope,
};

type Error = Box<dyn std::error::Error + Send + Sync>;

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
        let mut rules = Ruleset::default()
            .handle_access(AccessFs::from_all(NEWEST))?
            .handle_access(AccessNet::from_all(NEWEST))?
            .scope(Scope::from_all(NEWEST))?
            .create()?;
        for socket in sockets {
            let directory = PathFd::new(directory(socket))?;
            rules = rules.add_rule(PathBeneath::new(directory, AccessFs::RemoveFile))?;
        }
        Ok(Self(rules))
    }

    /// Enforces the rules on this thread and on threads it creates. Returns false if the kernel has no Landlock.
    pub(super) fn enforce(self) -> Result<bool, Error> {
        let status = self.0.restrict_self()?;
        Ok(status.ruleset != RulesetStatus::NotEnforced)
    }
}

/// Returns the directory that contains `path`.
fn directory(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}
