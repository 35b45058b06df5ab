//! `blockdev-snapshot`: what becomes of the nodes.

use std::sync::Arc;

use super::super::error::OperationError;
use super::{Changes, Kind, Node, Nodes};
use crate::daemon::options::{BackingRef, BlockdevRef};
use crate::engine::BlockNode;

impl Nodes {
    /// Checks whether `overlay` can take the place of `name`, and returns the disks of `name` and of the overlay.
    pub(in super::super) fn check_snapshot(
        &self,
        name: &str,
        overlay: &str,
    ) -> Result<(Arc<BlockNode>, Arc<BlockNode>), OperationError> {
        let below = self.part(name)?;
        self.busy.check(overlay)?;
        let top = self.get(overlay)?;
        let Kind::Format { disk, .. } = &top.kind else {
            return Err(OperationError::NoBackingFiles);
        };
        if name == overlay || !top.parents.is_empty() {
            return Err(OperationError::OverlayInUse);
        }
        if disk.backing_depth() > 0 {
            return Err(OperationError::OverlayHasBacking);
        }
        if disk.limits().read_only {
            return Err(OperationError::ReadOnlyBelow {
                name: overlay.to_owned(),
            });
        }
        let parents = self.get(name)?.parents.iter();
        let is_format = |parent: &&String| {
            self.nodes
                .get(*parent)
                .is_some_and(|node| matches!(node.kind, Kind::Format { .. }))
        };
        match parents.clone().find(is_format) {
            Some(parent) => Err(OperationError::NodeInUse {
                name: name.to_owned(),
                by: format!("node '{parent}'"),
            }),
            None => Ok((below, Arc::clone(disk))),
        }
    }

    /// Returns what changes when `overlay` takes the place of `name` with this `disk`. Nothing changes yet.
    pub(in super::super) fn plan_snapshot(
        &self,
        name: &str,
        overlay: &str,
        disk: Arc<BlockNode>,
    ) -> Result<Changes, OperationError> {
        let (mut below, mut top) = (self.get(name)?.clone(), self.get(overlay)?.clone());
        top.put_above(name, disk);
        top.parents = std::mem::replace(&mut below.parents, vec![overlay.to_owned()]);
        below.options.read_only = Some(true);
        let mut changes = Changes::new();
        for parent in &top.parents {
            let mut node = self.get(parent)?.clone();
            node.replace_child(overlay);
            changes.insert(parent.clone(), Some(node));
        }
        changes.insert(name.to_owned(), Some(below));
        changes.insert(overlay.to_owned(), Some(top));
        Ok(changes)
    }
}

impl Node {
    fn put_above(&mut self, name: &str, new: Arc<BlockNode>) {
        self.options.backing = Some(BackingRef::Name(name.to_owned()));
        if let Kind::Format { others, disk, .. } = &mut self.kind {
            others.push(("backing", name.to_owned()));
            *disk = new;
        }
    }

    fn replace_child(&mut self, name: &str) {
        self.options.file = Some(Box::new(BlockdevRef::Name(name.to_owned())));
        if let Kind::Raw { child, .. } | Kind::Throttle { child, .. } = &mut self.kind {
            name.clone_into(child);
        }
    }
}
