//! `blockdev-snapshot`: an overlay takes the place of a node, which becomes its backing file. Main thread only.
//!
//! The disk of the overlay is made first. Then the disk above is quiesced: what the guest was told is in the old node, and
//! what it asks for later goes to the overlay.

use std::sync::{Arc, PoisonError};

use super::error::OperationError;
use super::nodes::Changes;
use super::reopen::{Switch, switch_all};
use super::{Done, Registry};
use crate::daemon::disks::Disk;
use crate::engine::BlockNode;
use crate::vhost_user::Resizer;

const COMMAND: &str = "blockdev-snapshot";

impl Registry {
    /// Puts the node `overlay` above `node`: whatever uses `node` uses `overlay` from then on. Calls `done` when that is
    /// over.
    pub fn blockdev_snapshot(&mut self, node: &str, overlay: &str, done: Done) {
        let (below, disk) = match self.check_snapshot(node, overlay) {
            Ok(nodes) => nodes,
            Err(refusal) => return done(Err(refusal)),
        };
        let (node, overlay) = (node.to_owned(), overlay.to_owned());
        self.run_aside(
            move || Ok(Arc::new(disk.above(&below)?)),
            move |registry, disk| match disk {
                Ok(disk) => registry.put_above(&node, &overlay, disk, done),
                Err(refusal) => done(Err(refusal)),
            },
        );
    }

    /// Returns the disks of both nodes.
    fn check_snapshot(
        &self,
        node: &str,
        overlay: &str,
    ) -> Result<(Arc<BlockNode>, Arc<BlockNode>), OperationError> {
        let disks = self.nodes.check_snapshot(node, overlay)?;
        let exports = self.exports.values();
        let all = exports.chain(self.leaving.iter().map(|leaving| &leaving.export));
        match all.into_iter().any(|export| export.options.node_name == overlay) {
            true => Err(OperationError::OverlayInUse),
            false => Ok(disks),
        }
    }

    fn put_above(&mut self, node: &str, overlay: &str, disk: Arc<BlockNode>, done: Done) {
        // Other operations have run meanwhile.
        let planned = self.check_snapshot(node, overlay).and_then(|_| {
            let changes = self.nodes.plan_snapshot(node, overlay, disk)?;
            let switches = self.snapshot_switches(&changes, node, overlay)?;
            Ok((changes, switches))
        });
        let (changes, switches) = match planned {
            Ok(planned) => planned,
            Err(refusal) => return done(Err(refusal)),
        };
        let names: Vec<String> = changes.keys().cloned().collect();
        if let Err(refusal) = self.nodes.busy.mark(&names, COMMAND) {
            return done(Err(refusal));
        }
        let (node, overlay) = (node.to_owned(), overlay.to_owned());
        self.run_aside(
            move || switch_all(&switches),
            move |registry, switched| {
                registry.nodes.busy.clear(&names);
                match &switched {
                    Ok(()) => registry.took_place(&node, &overlay, changes),
                    Err(_) => registry.drop_aside(changes),
                }
                done(switched);
            },
        );
    }

    /// Returns the change of the disk above, if there is one.
    fn snapshot_switches(
        &mut self,
        changes: &Changes,
        node: &str,
        overlay: &str,
    ) -> Result<Vec<Switch>, OperationError> {
        let affected = self.exports_above(changes)?;
        if affected.len() > 1 {
            return Err(OperationError::SeveralExports {
                name: node.to_owned(),
            });
        }
        let mut switches = Vec::new();
        for (id, name) in affected {
            let name = if name == node { overlay } else { &name };
            switches.extend(self.switch_of(changes, &id, name)?);
        }
        switches.iter_mut().for_each(|switch| switch.is_snapshot = true);
        Ok(switches)
    }

    /// Goes on after the overlay has taken the place of the node.
    fn took_place(&mut self, node: &str, overlay: &str, changes: Changes) {
        tracing::info!(node, overlay, "snapshot taken");
        let old = self.nodes.apply(changes);
        self.drop_aside(old);
        for export in self.exports.values_mut() {
            if export.options.node_name == node {
                overlay.clone_into(&mut export.options.node_name);
                let mut in_events = export
                    .node_in_events
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                overlay.clone_into(&mut in_events);
            }
        }
        self.disks().map(Disk::resizer).for_each(Resizer::announce);
    }
}
