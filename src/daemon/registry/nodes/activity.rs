//! Active and inactive nodes. An inactive node leaves its image to others.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::error::OperationError;
use super::{Kind, Node, Nodes};
use crate::engine::BlockNode;

impl Nodes {
    /// Returns a node.
    ///
    /// # Errors
    /// There is no such node.
    pub(in super::super) fn find(&self, name: &str) -> Result<&Node, OperationError> {
        self.nodes.get(name).ok_or_else(|| OperationError::NotFound {
            name: name.to_owned(),
        })
    }

    /// Returns whether there is a node with this name, and it is active.
    pub(in super::super) fn is_active(&self, name: &str) -> bool {
        self.nodes.get(name).is_some_and(Node::is_active)
    }

    /// Returns the inactive nodes among this one and those below.
    pub(in super::super) fn to_activate(&self, name: &str) -> Result<BTreeSet<String>, OperationError> {
        self.find(name)?;
        let path = self.path_down(name).into_iter();
        Ok(path.filter(|name| !self.is_active(name)).collect())
    }

    /// Returns all nodes that are active, or all that are not.
    pub(in super::super) fn with_activity(&self, active: bool) -> BTreeSet<String> {
        let nodes = self.nodes.iter().filter(|(_, node)| node.is_active() == active);
        nodes.map(|(name, _)| name.clone()).collect()
    }

    /// Returns whether a node above this one is active, and not among `others`.
    pub(in super::super) fn has_active_parent(&self, name: &str, others: &BTreeSet<String>) -> bool {
        let parents = self.nodes.get(name).map(|node| &node.parents);
        let mut parents = parents.into_iter().flatten();
        parents.any(|parent| !others.contains(parent) && self.is_active(parent))
    }

    /// Makes nodes active or inactive.
    pub(in super::super) fn set_activity(&self, names: &[String], active: bool) {
        for node in names.iter().filter_map(|name| self.nodes.get(name)) {
            // Relaxed: the image locks order what matters.
            node.active.store(active, Ordering::Relaxed);
        }
    }

    /// Returns the images among these nodes.
    pub(in super::super) fn leaves_of(&self, names: &[String]) -> Vec<Arc<BlockNode>> {
        let nodes = names.iter().filter_map(|name| self.nodes.get(name));
        let leaf = |node: &Node| match &node.kind {
            Kind::Leaf(leaf) => Some(Arc::clone(leaf)),
            _ => None,
        };
        nodes.filter_map(leaf).collect()
    }
}
