//! The reason why nothing is handed over.

use super::message::PROGRAM;
use crate::error_chain::chain;

/// Refuses with a sentence for the other process.
#[derive(Debug)]
pub(in crate::daemon) struct Refusal(pub(in crate::daemon) String);

impl Refusal {
    /// The other process has sent a message that does not fit.
    pub(super) fn unexpected() -> Self {
        Self(format!("{PROGRAM} has got an unexpected message"))
    }
}

impl<E: std::error::Error + 'static> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self(chain(&error))
    }
}
