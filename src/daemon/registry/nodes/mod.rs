//! Block nodes by name: files, devices and null disks, and the filters above them.

mod activity;
mod check;
mod clusters;
mod filename;
mod format;
mod lines;
mod network;
mod open;
mod parked;
mod rbd;
mod reopen;
mod resize;
mod resolve;
mod snapshot;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::busy::Busy;
use super::error::{OperationError, require};
use super::objects::{Credentials, Objects};
use super::waiting::OpenedFile;
use crate::daemon::options::{BlockdevOptions, BlockdevRef, Driver, is_well_formed};
use crate::engine::BlockNode;
use crate::opener::FileRequest;
use crate::qmp::FdSets;
use crate::throttle::Group;

use check::check;
pub(super) use clusters::Clusters;
pub(super) use lines::Lines;
pub(super) use open::Images;
pub(super) use parked::ParkedNode;
pub(super) use rbd::reopened;
pub(super) use reopen::Changes;
pub(super) use resolve::Resolved;

/// The longest name of a node in bytes, as in QEMU.
const LONGEST_NAME: usize = 31;

/// Default size of a null disk in bytes, as in QEMU.
const NULL_SIZE: u64 = 1 << 30;

/// A block node that a user has made, or the implicit node below one.
#[derive(Clone, Debug)]
pub struct Node {
    options: BlockdevOptions,
    kind: Kind,
    /// The nodes that use this one.
    parents: Vec<String>,
    /// The node was made together with its parent, and is removed with it.
    owned: bool,
    /// Another process does not use the image.
    active: Arc<AtomicBool>,
}

#[derive(Clone, Debug)]
enum Kind {
    /// A disk.
    Leaf(Arc<BlockNode>),
    /// Shows a part of the node below.
    Raw { child: String, part: Part },
    /// Limits the I/O to the node below.
    Throttle { child: String, group: Arc<Group> },
    /// A disk in an image format. `others` are its backing file and its data file, if they are nodes.
    Format {
        child: String,
        others: Vec<(&'static str, String)>,
        disk: Arc<BlockNode>,
    },
}

/// The images that were opened for new nodes.
#[derive(Clone, Debug, Default)]
pub(super) struct Opened {
    /// The file, the device or the server at the bottom.
    pub(super) leaf: Option<Arc<BlockNode>>,
    /// The disk in an image format.
    pub(super) disk: Option<Arc<BlockNode>>,
}

/// A part of a node: all of it, unless `raw` has `offset` or `size`.
#[derive(Clone, Copy, Debug)]
struct Part {
    offset: u64,
    /// `None`: up to the end.
    size: Option<u64>,
}

impl Node {
    /// Returns the options the node was made with.
    pub fn options(&self) -> &BlockdevOptions {
        &self.options
    }

    /// Returns the throttle group of a throttle node.
    pub fn group(&self) -> Option<&Arc<Group>> {
        match &self.kind {
            Kind::Throttle { group, .. } => Some(group),
            _ => None,
        }
    }

    /// Returns whether the node is active.
    pub fn is_active(&self) -> bool {
        // Relaxed: the image locks order what matters.
        self.active.load(Ordering::Relaxed)
    }

    /// Returns the name of the node below, if any.
    pub fn child(&self) -> Option<&str> {
        match &self.kind {
            Kind::Leaf(_) => None,
            Kind::Raw { child, .. } | Kind::Throttle { child, .. } | Kind::Format { child, .. } => {
                Some(child)
            }
        }
    }

    /// Returns the names of all nodes that this node uses.
    fn below(&self) -> Vec<String> {
        let others = self.others().iter().map(|(_, name)| name.as_str());
        self.child()
            .into_iter()
            .chain(others)
            .map(str::to_owned)
            .collect()
    }

    /// Returns the names of the nodes besides the [`child`](Self::child) that this node uses, each with its role.
    fn others(&self) -> &[(&'static str, String)] {
        match &self.kind {
            Kind::Format { others, .. } => others,
            _ => &[],
        }
    }
}

/// All nodes, by name.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    nodes: BTreeMap<String, Node>,
    anonymous: u64,
    /// File descriptors that QMP clients have passed.
    pub(super) fdsets: FdSets,
    pub(super) busy: Busy,
    /// The helper processes that connect to NBD servers.
    pub(super) lines: Lines,
    /// The connections to Ceph clusters.
    pub(super) clusters: Clusters,
    /// Files can no longer be opened by path.
    pub(super) confined: bool,
}

impl Nodes {
    pub(super) fn get(&self, name: &str) -> Result<&Node, OperationError> {
        self.nodes.get(name).ok_or_else(|| no_node(name))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(name, node)| (name.as_str(), node))
    }

    /// Returns all disks.
    pub(super) fn leaves(&self) -> impl Iterator<Item = &Arc<BlockNode>> {
        self.nodes.values().filter_map(|node| match &node.kind {
            Kind::Leaf(leaf) => Some(leaf),
            _ => None,
        })
    }

    /// Checks new nodes as far as that is possible before their image is open.
    pub(super) fn check_add(
        &self,
        options: &BlockdevOptions,
        objects: &Objects,
    ) -> Result<(), OperationError> {
        options.node_name.as_ref().ok_or(OperationError::NoNodeName)?;
        for options in options.all() {
            if let Some(name) = &options.node_name {
                self.check_name(name)?;
            }
            check(options)?;
            if let Some(id) = &options.throttle_group {
                objects.group(id)?;
            }
            if let Some(id) = &options.tls_creds {
                objects.tls_creds(id)?;
            }
            if let Some(id) = &options.key_secret {
                objects.secret(id)?;
            }
            if let Some(BlockdevRef::Name(below)) = options.file.as_deref() {
                self.get(below)?;
                self.busy.check(below)?;
            }
            self.check_format(options)?;
        }
        Ok(())
    }

    fn check_name(&self, name: &str) -> Result<(), OperationError> {
        if !is_well_formed(name) {
            return Err(OperationError::BadId { id: name.to_owned() });
        }
        if name.len() > LONGEST_NAME {
            return Err(OperationError::LongName);
        }
        self.busy.check(name)?;
        match self.nodes.contains_key(name) {
            true => Err(OperationError::NodeExists {
                name: name.to_owned(),
            }),
            false => Ok(()),
        }
    }

    /// Makes a node and the nodes below that its options describe, with the images that were opened for them.
    pub(super) fn add(
        &mut self,
        options: BlockdevOptions,
        opened: Opened,
        objects: &Objects,
    ) -> Result<(), OperationError> {
        self.check_add(&options, objects)?;
        let name = options.node_name.clone().ok_or(OperationError::NoNodeName)?;
        self.add_as(name, options, false, opened, objects)
    }

    fn add_as(
        &mut self,
        name: String,
        options: BlockdevOptions,
        owned: bool,
        opened: Opened,
        objects: &Objects,
    ) -> Result<(), OperationError> {
        if self.nodes.contains_key(&name) {
            return Err(OperationError::NodeExists { name });
        }
        check(&options)?;
        let active = options.active != Some(false);
        let kind = match options.driver {
            Driver::File | Driver::HostDevice | Driver::Nbd | Driver::Rbd => {
                Kind::Leaf(opened.leaf.expect("the image is open"))
            }
            Driver::NullCo | Driver::NullAio => Kind::Leaf(null(&options)),
            Driver::Qcow2 => {
                let disk = opened.disk.clone().expect("the image is open");
                let child = self.child(&name, &options, opened, objects)?;
                self.format(&name, &options, &child, disk)
                    .inspect_err(|_| self.let_go(&child, &name, &mut Vec::new()))?
            }
            Driver::Raw | Driver::Throttle => {
                let group = match options.driver {
                    Driver::Raw => None,
                    _ => Some(require("throttle-group", options.throttle_group.as_deref())?),
                };
                let group = group.map(|id| objects.group(id)).transpose()?;
                let child = self.child(&name, &options, opened, objects)?;
                self.filter(&name, &options, &child, group)
                    .inspect_err(|_| self.let_go(&child, &name, &mut Vec::new()))?
            }
        };
        let node = Node {
            options,
            kind,
            parents: Vec::new(),
            owned,
            active: Arc::new(AtomicBool::new(active)),
        };
        self.nodes.insert(name, node);
        Ok(())
    }

    /// Returns the kind of a node above `child`.
    fn filter(
        &self,
        name: &str,
        options: &BlockdevOptions,
        child: &str,
        group: Option<Arc<Group>>,
    ) -> Result<Kind, OperationError> {
        if self.nodes.contains_key(name) {
            // The node below has taken the name.
            let name = name.to_owned();
            return Err(OperationError::NodeExists { name });
        }
        if options.active != Some(false) && !self.get(child)?.is_active() {
            return Err(OperationError::InactiveChild {
                child: child.to_owned(),
                name: name.to_owned(),
            });
        }
        let below = self.resolve(child)?;
        let child = child.to_owned();
        Ok(match group {
            None => Kind::Raw {
                part: Part::of(options, &below.view)?,
                child,
            },
            Some(_) if below.group.is_some() => return Err(OperationError::ThrottledTwice),
            Some(group) => Kind::Throttle { child, group },
        })
    }

    /// Finds or makes the node below `parent`.
    fn child(
        &mut self,
        parent: &str,
        options: &BlockdevOptions,
        opened: Opened,
        objects: &Objects,
    ) -> Result<String, OperationError> {
        let name = match require("file", options.file.as_deref())? {
            BlockdevRef::Name(name) => name.clone(),
            BlockdevRef::New(child) => {
                let child = (**child).clone();
                let name = child.node_name.clone().unwrap_or_else(|| {
                    self.anonymous += 1;
                    format!("#block{:03}", self.anonymous)
                });
                self.add_as(name.clone(), child, true, opened, objects)?;
                name
            }
        };
        let child = self.nodes.get_mut(&name).ok_or_else(|| no_node(&name))?;
        child.parents.push(parent.to_owned());
        Ok(name)
    }

    /// Returns the means to open images, with those that were opened already for this operation.
    pub(super) fn images(&self, opened: Vec<OpenedFile>, credentials: Credentials) -> Images {
        Images {
            credentials,
            fdsets: self.fdsets.clone(),
            lines: self.lines.clone(),
            clusters: self.clusters.clone(),
            confined: self.confined,
            opened,
            keep_flags: false,
        }
    }

    /// Returns the image that new nodes need by its name, once this process is confined.
    pub(super) fn named_file(&self, options: &BlockdevOptions) -> Option<(PathBuf, FileRequest)> {
        self.confined.then(|| open::named_file(options)).flatten()
    }

    /// Removes an unused node, and the nodes below that were made with it. `exported` returns the export of a node.
    /// Returns what was removed.
    pub(super) fn remove(
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
    fn let_go(&mut self, child: &str, parent: &str, removed: &mut Vec<Node>) {
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

    /// Returns the names of a node and of all nodes below.
    pub(super) fn path_down(&self, name: &str) -> Vec<String> {
        let below = |name: &String| self.nodes.get(name).and_then(Node::child).map(str::to_owned);
        std::iter::successors(Some(name.to_owned()), below).collect()
    }
}

fn no_node(name: &str) -> OperationError {
    OperationError::NoNode {
        name: name.to_owned(),
    }
}

fn null(options: &BlockdevOptions) -> Arc<BlockNode> {
    let size = options.size.unwrap_or(NULL_SIZE);
    let latency = options.latency_ns.filter(|latency| *latency > 0);
    let zeroes = options.read_zeroes == Some(true);
    Arc::new(BlockNode::null_disk(
        size,
        latency.map(Duration::from_nanos),
        zeroes,
    ))
}
