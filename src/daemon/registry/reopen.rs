//! `blockdev-reopen`: changes nodes, also under disks that work. Main thread only.
//!
//! The images are opened first. Then the disks are quiesced, prepare their new ways to the nodes, and switch: all of
//! them, or none. The nodes of the registry change last.

use std::sync::Arc;

use super::error::OperationError;
use super::nodes::{Changes, Images, reopened};
use super::objects::IoThreadObject;
use super::{Done, Registry};
use crate::blk::handle::DiskHandle;
use crate::daemon::disks::Disk;
use crate::daemon::options::BlockdevOptions;
use crate::daemon::registry::nodes::Resolved;
use crate::engine::{BlockNode, Plan};
use crate::vhost_user::Resizer;

const COMMAND: &str = "blockdev-reopen";

/// The new options of a node, and its image if it has one of its own.
type New = (BlockdevOptions, Option<Arc<BlockNode>>);

/// The new options of a node before its image is open.
struct Asked {
    options: BlockdevOptions,
    /// The image as it is open now, and whether it can stay so.
    before: Option<(Arc<BlockNode>, bool)>,
}

impl Asked {
    fn opens(&self) -> bool {
        self.before.as_ref().is_none_or(|(_, stays)| !stays)
    }
}

/// A disk that is going to use other nodes.
pub(super) struct Switch {
    disk: Arc<DiskHandle>,
    node: Resolved,
    merging: bool,
    register_memory: bool,
    /// The node below becomes the backing file of the new one.
    pub(super) is_snapshot: bool,
    /// They live longer than the handle.
    _iothreads: Vec<Arc<IoThreadObject>>,
}

impl Registry {
    /// Changes the options of nodes: of all, or of none. Calls `done` when that is over.
    pub fn blockdev_reopen(&mut self, mut list: Vec<BlockdevOptions>, done: Done) {
        let check = |options| self.nodes.check_reopen(options);
        if let Err(refusal) = list.iter_mut().try_for_each(check) {
            return done(Err(refusal));
        }
        let asked = |options: BlockdevOptions| Asked {
            before: self.nodes.leaf_before(&options),
            options,
        };
        let list: Vec<Asked> = list.into_iter().map(asked).collect();
        let opened = list.iter().filter(|asked| asked.opens());
        let wanted = self.wanted_files(opened.map(|asked| &asked.options));
        self.run_with(wanted, done, move |registry, given, done| {
            let images = Self::images(registry, given.files).for_reopen();
            registry.run_aside(
                move || open(images, list),
                move |registry, list| registry.go_on_with(list, done),
            );
        });
    }

    /// Goes on after the images have been opened.
    fn go_on_with(&mut self, list: Result<Vec<New>, OperationError>, done: Done) {
        let list = match list {
            Ok(list) => list,
            Err(refusal) => return done(Err(refusal)),
        };
        let leaves: Vec<_> = list.iter().map(|(_, leaf)| leaf.clone()).collect();
        match self.switches(list) {
            Ok((changes, switches)) => self.switch(changes, switches, done),
            Err(refusal) => {
                self.drop_aside(leaves);
                done(Err(refusal));
            }
        }
    }

    /// Returns the changes of the nodes and of the disks above.
    fn switches(&mut self, mut list: Vec<New>) -> Result<(Changes, Vec<Switch>), OperationError> {
        // Other operations have run meanwhile.
        list.iter_mut()
            .try_for_each(|(options, _)| self.nodes.check_reopen(options))?;
        let changes = self.nodes.plan_reopen(list, &self.objects)?;
        let affected = self.exports_above(&changes)?;
        let mut switches = Vec::new();
        for (id, node) in affected {
            switches.extend(self.switch_of(&changes, &id, &node)?);
        }
        Ok((changes, switches))
    }

    /// Returns the exports above nodes that change, each with the name of its node.
    pub(super) fn exports_above(&self, changes: &Changes) -> Result<Vec<(String, String)>, OperationError> {
        let is_above = |node: &str| {
            let path = self.nodes.path_down(node);
            path.iter().any(|name| changes.contains_key(name))
        };
        let mut leaving = self.leaving.iter();
        if let Some(by) = leaving.find(|leaving| is_above(&leaving.export.options.node_name)) {
            return Err(OperationError::NodeInUse {
                name: by.export.options.node_name.clone(),
                by: format!("export '{}'", by.id),
            });
        }
        let exports = self.exports.iter();
        let exports = exports.map(|(id, export)| (id.clone(), export.options.node_name.clone()));
        Ok(exports.filter(|(_, node)| is_above(node)).collect())
    }

    /// Returns the change of a disk, unless it has ended.
    pub(super) fn switch_of(
        &mut self,
        changes: &Changes,
        id: &str,
        name: &str,
    ) -> Result<Option<Switch>, OperationError> {
        let node = self.nodes.resolve_with(changes, name)?;
        let Some(export) = self.exports.get(id) else {
            return Ok(None);
        };
        if export.writable && node.read_only {
            let name = self.nodes.read_only_node(changes, name);
            return Err(OperationError::ReadOnlyBelow {
                name: name.unwrap_or_default(),
            });
        }
        let disk = self.running.as_ref().and_then(|running| running.disks.get(id));
        let Some(disk) = disk.and_then(Disk::handle) else {
            return Ok(None);
        };
        let (block, needed) = (disk.block_size(), node.view.node.limits().logical_block_size);
        if needed > block {
            return Err(OperationError::BlocksOfExport {
                id: id.to_owned(),
                name: name.to_owned(),
                block,
                needed,
            });
        }
        if node.view.size() < block.into() {
            return Err(OperationError::NoBlock {
                name: name.to_owned(),
            });
        }
        Ok(Some(Switch {
            disk,
            node,
            merging: export.merging,
            register_memory: export.register_memory,
            is_snapshot: false,
            _iothreads: export.iothreads.clone(),
        }))
    }

    /// Switches the disks, and then the nodes.
    fn switch(&mut self, changes: Changes, switches: Vec<Switch>, done: Done) {
        let names: Vec<String> = changes.keys().cloned().collect();
        if let Err(refusal) = self.nodes.busy.mark(&names, COMMAND) {
            return done(Err(refusal));
        }
        self.run_aside(
            move || switch_all(&switches),
            move |registry, switched| {
                registry.nodes.busy.clear(&names);
                if switched.is_ok() {
                    tracing::info!(nodes = names.join(", "), "nodes reopened");
                    let old = registry.nodes.apply(changes);
                    registry.drop_aside(old);
                    registry.disks().map(Disk::resizer).for_each(Resizer::announce);
                } else {
                    registry.drop_aside(changes);
                }
                done(switched);
            },
        );
    }
}

/// Opens the images that are not open as they should be.
fn open(mut images: Images, list: Vec<Asked>) -> Result<Vec<New>, OperationError> {
    let open = |Asked { options, before }: Asked| {
        if let Some((leaf, true)) = before {
            return Ok((options, Some(leaf)));
        }
        if let Some(leaf) = before.as_ref().and_then(|(old, _)| reopened(old, &options)) {
            return Ok((options, Some(leaf)));
        }
        let leaf = images.open_leaf(&options)?;
        if let (Some((old, _)), Some(new)) = (before, &leaf)
            && !old.is_same_image(new)
        {
            let path = new.path().to_owned();
            return Err(OperationError::OtherImage { path });
        }
        Ok((options, leaf))
    };
    list.into_iter().map(open).collect()
}

/// Switches all disks, or none. Waits until their requests in flight have ended.
pub(super) fn switch_all(switches: &[Switch]) -> Result<(), OperationError> {
    let plan = |switch: &Switch| -> Result<Plan, OperationError> {
        let node = &switch.node;
        let plan = node.view.node.plan(node.engine)?;
        let plan = plan.with_merging(switch.merging).with_max_batch(node.max_batch);
        // Another engine does without.
        Ok(plan
            .with_registered_memory(switch.register_memory)
            .unwrap_or(plan))
    };
    let plans = switches.iter().map(plan).collect::<Result<Vec<_>, _>>()?;
    let quiesced = switches.iter().map(|switch| switch.disk.quiesce());
    let quiesced = quiesced
        .collect::<Result<Vec<_>, _>>()
        .map_err(OperationError::Gone)?;
    let mut replacements = Vec::new();
    for ((switch, plan), quiesced) in switches.iter().zip(plans).zip(&quiesced) {
        let node = &switch.node;
        let (view, group) = (node.view.clone(), node.group.as_ref());
        replacements.push(match switch.is_snapshot {
            false => quiesced.prepare(view, plan, group)?,
            true => quiesced.prepare_above(view, plan, group)?,
        });
    }
    for replacement in replacements {
        replacement.commit();
    }
    drop(quiesced);
    // The old channels are gone afterwards, so that the old images are not closed on an IOThread.
    switches.iter().for_each(|switch| switch.disk.settle());
    Ok(())
}
