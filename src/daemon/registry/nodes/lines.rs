//! The connections to NBD servers.

use std::sync::{Arc, Mutex, PoisonError};

use crate::nbd::Line;

/// The lines to NBD servers. Clones share them.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Lines(pub(super) Arc<Mutex<Vec<Arc<Line>>>>);

impl Lines {
    /// Adds these lines.
    pub(in super::super) fn extend(&self, lines: Vec<Arc<Line>>) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(lines);
    }
}
