//! A mistake that was found.

use std::fmt;

/// The weight of a mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// Something does not work, or will not.
    Error,
    /// Something works worse than it could.
    Warning,
    /// Nothing is wrong: a fact that is easily missed.
    Note,
}

/// A mistake, and what to do.
#[derive(Clone, Debug)]
pub(super) struct Finding {
    pub(super) level: Level,
    what: String,
    cure: String,
}

impl Finding {
    pub(super) fn error(what: impl Into<String>, cure: impl Into<String>) -> Self {
        Self {
            level: Level::Error,
            what: what.into(),
            cure: cure.into(),
        }
    }

    pub(super) fn warning(what: impl Into<String>, cure: impl Into<String>) -> Self {
        Self {
            level: Level::Warning,
            ..Self::error(what, cure)
        }
    }

    pub(super) fn note(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            level: Level::Note,
            ..Self::error(what, advice)
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Note => "note",
        };
        write!(f, "{level}: {}\n    {}", self.what, self.cure)
    }
}
