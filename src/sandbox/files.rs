//! Landlock: which files can still be reached by name. None, but for the removal of the socket at the end.
//!
//! What was opened before stays as usable as it was, the image and its device with their ioctls too.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetStatus, Scope,
};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// The newest of what we know; a kernel that knows less enforces what it knows.
const NEWEST: ABI = ABI::V9;

/// Rules that are ready to be enforced.
pub(super) struct Rules(RulesetCreated);

impl Rules {
    /// Rules by which nothing can be reached, but files in the directory of `socket` may be removed.
    ///
    /// # Errors
    /// The directory cannot be opened; a kernel without Landlock gives no error here.
    pub(super) fn new(socket: Option<&Path>) -> Result<Self, Error> {
        let rules = Ruleset::default()
            .handle_access(AccessFs::from_all(NEWEST))?
            .handle_access(AccessNet::from_all(NEWEST))?
            .scope(Scope::from_all(NEWEST))?
            .create()?;
        let Some(socket) = socket else {
            return Ok(Self(rules));
        };
        let directory = PathFd::new(directory(socket))?;
        Ok(Self(
            rules.add_rule(PathBeneath::new(directory, AccessFs::RemoveFile))?,
        ))
    }

    /// Enforces them on this thread and those that it creates; false if the kernel has no Landlock.
    pub(super) fn enforce(self) -> Result<bool, Error> {
        let status = self.0.restrict_self()?;
        Ok(status.ruleset != RulesetStatus::NotEnforced)
    }
}

/// The directory that a path is in.
fn directory(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}
