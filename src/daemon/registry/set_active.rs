//! `blockdev-set-active`: gives an image to another process, as in a live migration, and takes it back. Main thread only.
//!
//! An inactive node takes no writes, and its disks hold no lock.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::error::OperationError;
use super::objects::IoThreadObject;
use super::{Done, Registry};
use crate::blk::device::TakeError;
use crate::blk::handle::DiskHandle;
use crate::daemon::disks::Disk;
use crate::engine::BlockNode;
use crate::vhost_user::Resizer;

const COMMAND: &str = "blockdev-set-active";

/// A disk that becomes active or inactive.
struct Switch {
    disk: Arc<DiskHandle>,
    /// They live longer than the handle.
    _iothreads: Vec<Arc<IoThreadObject>>,
}

impl Registry {
    /// Makes a node, or all nodes, active or inactive. Calls `done` when that is over.
    pub fn set_active(&mut self, name: Option<&str>, active: bool, done: Done) {
        self.set_active_then(name, active, |_, outcome| done(outcome));
    }

    /// As [`set_active`](Self::set_active), and goes on with `then`.
    pub(super) fn set_active_then(
        &mut self,
        name: Option<&str>,
        active: bool,
        then: impl FnOnce(&mut Self, Result<(), OperationError>) + Send + 'static,
    ) {
        let names = match (name, active) {
            (Some(name), true) => self.nodes.to_activate(name),
            (Some(name), false) => self.to_deactivate(name),
            (None, true) => Ok(self.nodes.with_activity(false)),
            (None, false) => self.all_to_deactivate(),
        };
        let marked = names.and_then(|names| {
            let names: Vec<String> = names.into_iter().collect();
            self.nodes.busy.mark(&names, COMMAND)?;
            Ok(names)
        });
        let names = match marked {
            Ok(names) => names,
            Err(refusal) => return then(self, Err(refusal)),
        };
        let (switches, leaves) = self.affected(&names, active);
        let work = move || match active {
            true => activate(&switches, &leaves),
            false => deactivate(&switches),
        };
        self.run_aside(work, move |registry, outcome| {
            registry.nodes.busy.clear(&names);
            registry.nodes.set_activity(&names, active == outcome.is_ok());
            if outcome.is_ok() && !names.is_empty() {
                tracing::info!(nodes = names.join(", "), active, "nodes switched");
                registry.disks().map(Disk::resizer).for_each(Resizer::announce);
            }
            then(registry, outcome);
        });
    }

    /// Returns the nodes that become inactive with this one.
    fn to_deactivate(&self, name: &str) -> Result<BTreeSet<String>, OperationError> {
        if !self.nodes.find(name)?.is_active() {
            return Ok(BTreeSet::new());
        }
        if self.nodes.has_active_parent(name, &BTreeSet::new()) {
            return Err(OperationError::ActiveParent);
        }
        if self.keeps_active(name) {
            return Err(OperationError::CannotInactivate);
        }
        let mut names = BTreeSet::new();
        for name in self.nodes.path_down(name) {
            if self.nodes.has_active_parent(&name, &names) || self.keeps_active(&name) {
                break;
            }
            names.insert(name);
        }
        Ok(names)
    }

    /// Returns all active nodes, if all of them may become inactive.
    fn all_to_deactivate(&self) -> Result<BTreeSet<String>, OperationError> {
        let names = self.nodes.with_activity(true);
        match names.iter().any(|name| self.keeps_active(name)) {
            true => Err(OperationError::CannotInactivateAll),
            false => Ok(names),
        }
    }

    /// Returns whether an export of this node does not allow it to be inactive, or is being removed.
    fn keeps_active(&self, name: &str) -> bool {
        let leaving = self.leaving.iter().map(|leaving| &leaving.export);
        let mut exports = self.exports.values().filter(|export| !export.allow_inactive);
        exports.any(|export| export.options.node_name == name)
            || leaving.into_iter().any(|export| export.options.node_name == name)
    }

    /// Returns the disks that become active or inactive with these nodes, and the images that no disk uses.
    fn affected(&self, names: &[String], active: bool) -> (Vec<Switch>, Vec<Arc<BlockNode>>) {
        let mut leaves = self.nodes.leaves_of(names);
        let mut switches = Vec::new();
        for (id, export) in &self.exports {
            let path = self.nodes.path_down(&export.options.node_name);
            // With another inactive node on its way, the disk stays inactive.
            let is_affected = path.iter().any(|name| names.contains(name))
                && path
                    .iter()
                    .all(|name| names.contains(name) || self.nodes.is_active(name));
            let disk = self.running.as_ref().and_then(|running| running.disks.get(id));
            let disk = disk.filter(|_| is_affected).and_then(Disk::handle);
            if let Some(disk) = disk {
                leaves.retain(|leaf| !Arc::ptr_eq(leaf, &disk.view().node));
                switches.push(Switch {
                    disk,
                    _iothreads: export.iothreads.clone(),
                });
            }
        }
        match active {
            true => (switches, leaves),
            false => (switches, Vec::new()),
        }
    }
}

/// Activates all disks, or none, and looks at the images that no disk uses.
fn activate(switches: &[Switch], leaves: &[Arc<BlockNode>]) -> Result<(), OperationError> {
    for leaf in leaves {
        leaf.look_anew().map_err(|error| TakeError::Look {
            path: leaf.path().to_owned(),
            error,
        })?;
    }
    for (number, switch) in switches.iter().enumerate() {
        if let Err(error) = switch.disk.activate() {
            for switch in &switches[..number] {
                // What it cannot flush stays locked, and is reported.
                let _ = switch.disk.deactivate();
            }
            return Err(error.into());
        }
    }
    Ok(())
}

/// Flushes all disks, and releases their images.
fn deactivate(switches: &[Switch]) -> Result<(), OperationError> {
    for (number, switch) in switches.iter().enumerate() {
        if let Err(source) = switch.disk.deactivate() {
            for switch in &switches[..number] {
                // If somebody has taken the image meanwhile, the disk stays inactive.
                let _ = switch.disk.activate();
            }
            return Err(OperationError::Inactivate { source });
        }
    }
    Ok(())
}
