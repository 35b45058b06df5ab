//! Block nodes by name: files, devices and null disks, and the filters above them.

mod activity;
mod add;
mod check;
mod clusters;
mod filename;
mod format;
mod lines;
mod network;
mod open;
mod parked;
mod rbd;
mod remove;
mod reopen;
mod resize;
mod resolve;
mod snapshot;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::busy::Busy;
use super::error::OperationError;
use super::objects::Credentials;
use super::waiting::OpenedFile;
use crate::daemon::options::BlockdevOptions;
use crate::engine::BlockNode;
use crate::opener::FileRequest;
use crate::qmp::FdSets;
use crate::throttle::Group;

pub(super) use clusters::Clusters;
pub(super) use lines::Lines;
pub(super) use open::Images;
pub(super) use parked::ParkedNode;
pub(super) use rbd::reopened;
pub(super) use reopen::Changes;
pub(super) use resolve::Resolved;

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
    /// Returns the disk, if the node is one itself.
    pub(super) fn leaf(&self) -> Option<&Arc<BlockNode>> {
        match &self.kind {
            Kind::Leaf(leaf) => Some(leaf),
            _ => None,
        }
    }

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
        self.nodes.values().filter_map(Node::leaf)
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
