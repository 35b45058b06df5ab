//! Whether the size of a node may be changed.

use super::{Kind, Nodes};
use crate::daemon::registry::error::OperationError;

impl Nodes {
    /// Checks that no other node depends on the size of the nodes that are resized with `name`.
    ///
    /// # Errors
    /// A part of one of these nodes has a place in it.
    pub(in super::super) fn check_resize(&self, name: &str) -> Result<(), OperationError> {
        let mut user = None;
        let mut next = Some(name);
        while let Some(node) = next {
            let others = &self.get(node)?.parents;
            let mut others = others.iter().filter(|parent| Some(parent.as_str()) != user);
            if let Some(by) = others.find(|parent| self.needs_size(parent)) {
                return Err(OperationError::ResizeConflict {
                    node: node.to_owned(),
                    user: match user {
                        None => format!("an unnamed block device (uses node '{node}' as 'root' child)"),
                        Some(user) => format!("node '{user}' (uses node '{node}' as 'file' child)"),
                    },
                    by: by.clone(),
                });
            }
            user = Some(node);
            next = self.get(node)?.child();
        }
        Ok(())
    }

    /// Returns whether a node, or one above it, shows a part of the node below.
    fn needs_size(&self, name: &str) -> bool {
        let Some(node) = self.nodes.get(name) else {
            return false;
        };
        match &node.kind {
            Kind::Format { .. } => true,
            Kind::Raw { part, .. } if part.offset > 0 || part.size.is_some() => true,
            _ => node.parents.iter().any(|parent| self.needs_size(parent)),
        }
    }
}
