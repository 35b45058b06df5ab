//! Removes nodes.

use super::super::error::OperationError;
use super::{Node, Nodes};

impl Nodes {
    /// Removes an unused node, and the nodes below that were made with it. `exported` returns the export of a node.
    /// Returns what was removed.
    pub(in crate::daemon::registry) fn remove(
        &mut self,
        name: &str,
        exported: impl Fn(&str) -> Option<String>,
    ) -> Result<Vec<Node>, OperationError> {
        let node = self.get(name)?;
        self.busy.check(name)?;
        if node.owned {
            return Err(OperationError::NotOwned {
                name: name.to_owned(),
            });
        }
        if let Some(parent) = node.parents.first() {
            return Err(OperationError::NodeInUse {
                name: name.to_owned(),
                by: format!("node '{parent}'"),
            });
        }
        let mut next = Some(name);
        while let Some(name) = next {
            if let Some(id) = exported(name) {
                return Err(OperationError::NodeInUse {
                    name: name.to_owned(),
                    by: format!("export '{id}'"),
                });
            }
            let child = self.get(name)?.child();
            child.map_or(Ok(()), |child| self.busy.check(child))?;
            next = child.filter(|child| self.nodes.get(*child).is_some_and(|below| below.owned));
        }
        let mut removed: Vec<Node> = self.nodes.remove(name).into_iter().collect();
        for below in removed.first().map(Node::below).unwrap_or_default() {
            self.let_go(&below, name, &mut removed);
        }
        Ok(removed)
    }

    /// Removes `parent` from the parents of `child`. A node that was made with its parent is removed with the last one,
    /// and added to `removed`.
    pub(super) fn let_go(&mut self, child: &str, parent: &str, removed: &mut Vec<Node>) {
        let Some(below) = self.nodes.get_mut(child) else {
            return;
        };
        below.parents.retain(|known| known != parent);
        if below.owned
            && below.parents.is_empty()
            && let Some(gone) = self.nodes.remove(child)
        {
            for next in gone.below() {
                self.let_go(&next, child, removed);
            }
            removed.push(gone);
        }
    }
}
