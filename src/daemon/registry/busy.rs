//! Marks on nodes that an operation has not finished with.

use std::collections::BTreeMap;

use super::error::OperationError;

/// The nodes that an operation has not finished with, each with the name of the operation.
#[derive(Debug, Default)]
pub(super) struct Busy(BTreeMap<String, &'static str>);

impl Busy {
    /// Refuses a busy node.
    pub(super) fn check(&self, name: &str) -> Result<(), OperationError> {
        match self.0.get(name) {
            None => Ok(()),
            Some(by) => Err(OperationError::Busy {
                name: name.to_owned(),
                by,
            }),
        }
    }

    /// Marks nodes, none of which may be busy.
    pub(super) fn mark(&mut self, names: &[String], by: &'static str) -> Result<(), OperationError> {
        names.iter().try_for_each(|name| self.check(name))?;
        self.0.extend(names.iter().map(|name| (name.clone(), by)));
        Ok(())
    }

    /// Returns a busy node, if there is one.
    pub(super) fn first(&self) -> Option<&str> {
        self.0.keys().next().map(String::as_str)
    }

    /// Removes the marks.
    pub(super) fn clear(&mut self, names: &[String]) {
        for name in names {
            self.0.remove(name);
        }
    }
}
