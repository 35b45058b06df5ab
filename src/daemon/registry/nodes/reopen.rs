//! `blockdev-reopen`: changes the options of existing nodes.

use super::super::error::OperationError;
use super::super::objects::Objects;
use super::{Nodes, no_node};
use crate::daemon::options::BlockdevOptions;

impl Nodes {
    /// Changes the options of all these nodes, or of none. No node above them may be served.
    pub(in super::super) fn reopen(
        &mut self,
        list: Vec<BlockdevOptions>,
        objects: &Objects,
    ) -> Result<(), OperationError> {
        let before = self.nodes.clone();
        let reopened = list
            .into_iter()
            .try_for_each(|options| self.reopen_one(options, objects));
        reopened.inspect_err(|_| self.nodes = before)
    }

    fn reopen_one(&mut self, mut options: BlockdevOptions, objects: &Objects) -> Result<(), OperationError> {
        options.pass_down();
        let name = options.node_name.clone().ok_or(OperationError::NoNodeName)?;
        let old = self.nodes.remove(&name).ok_or_else(|| no_node(&name))?;
        if old.options.driver != options.driver {
            return Err(OperationError::OtherDriver { name });
        }
        if let Some(child) = old.child() {
            self.let_go(child, &name);
        }
        // Removed from the map meanwhile, so that a node cannot become its own child.
        self.add_as(name.clone(), options, old.owned, objects)?;
        if self.is_below(&name, &old.parents) {
            return Err(OperationError::Circle { name });
        }
        if let Some(new) = self.nodes.get_mut(&name) {
            new.parents = old.parents;
            new.active = old.active;
        }
        Ok(())
    }

    /// Returns whether a node has one of `others` below it.
    fn is_below(&self, name: &str, others: &[String]) -> bool {
        let child = self.nodes.get(name).and_then(|node| node.child());
        // The recursion ends: a path back to `name` leads through one of `others`, where the search stops.
        child.is_some_and(|child| others.iter().any(|other| other == child) || self.is_below(child, others))
    }

    /// Returns whether `name` is `other` or a node above it.
    pub(in super::super) fn reaches(&self, name: &str, other: &str) -> bool {
        let child = self.nodes.get(name).and_then(|node| node.child());
        name == other || child.is_some_and(|child| self.reaches(child, other))
    }
}
