//! Block nodes by name: files, devices and null disks, and the filters above them.

mod filename;
mod network;
mod reopen;
mod resize;
mod resolve;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_getfl};

use super::error::{OperationError, refuse, require};
use super::names::OpenedFile;
use super::objects::Objects;
use crate::daemon::options::{
    AioOption, BlockdevOptions, BlockdevRef, DetectZeroes, Driver, OnOffAuto, is_well_formed,
};
use crate::engine::{self, BlockNode};
use crate::nbd::Line;
use crate::opener::FileRequest;
use crate::qmp::FdSets;
use crate::storage::{self, OpenOptions, foreign_format};
use crate::throttle::Group;

pub(super) use resolve::Resolved;

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
            Kind::Raw { child, .. } | Kind::Throttle { child, .. } => Some(child),
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
    /// Images that were opened for the operation that runs next.
    pub(super) opened: Vec<OpenedFile>,
    /// The processes that connect to NBD servers.
    pub(super) lines: Vec<Arc<Line>>,
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

    /// Makes a node and the nodes below that its options describe.
    pub(super) fn add(
        &mut self,
        mut options: BlockdevOptions,
        objects: &Objects,
    ) -> Result<(), OperationError> {
        options.pass_down();
        let name = options.node_name.clone().ok_or(OperationError::NoNodeName)?;
        self.add_as(name, options, false, objects)
    }

    fn add_as(
        &mut self,
        name: String,
        options: BlockdevOptions,
        owned: bool,
        objects: &Objects,
    ) -> Result<(), OperationError> {
        let is_generated = owned && name.starts_with('#');
        if !is_generated && !is_well_formed(&name) {
            return Err(OperationError::BadId { id: name });
        }
        if self.nodes.contains_key(&name) {
            return Err(OperationError::NodeExists { name });
        }
        check(&options)?;
        let active = options.active != Some(false);
        let kind = match options.driver {
            Driver::File | Driver::HostDevice => Kind::Leaf(self.open(&options)?),
            Driver::NullCo | Driver::NullAio => Kind::Leaf(null(&options)),
            Driver::Nbd => Kind::Leaf(self.open_nbd(&options)?),
            Driver::Raw | Driver::Throttle => {
                let group = match options.driver {
                    Driver::Raw => None,
                    _ => Some(require("throttle-group", options.throttle_group.as_deref())?),
                };
                let group = group.map(|id| objects.group(id)).transpose()?;
                let child = self.child(&name, &options, objects)?;
                self.filter(&name, &options, &child, group)
                    .inspect_err(|_| self.let_go(&child, &name))?
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
        objects: &Objects,
    ) -> Result<String, OperationError> {
        let name = match require("file", options.file.as_deref())? {
            BlockdevRef::Name(name) => name.clone(),
            BlockdevRef::New(child) => {
                let child = child.clone();
                let name = child.node_name.clone().unwrap_or_else(|| {
                    self.anonymous += 1;
                    format!("#block{:03}", self.anonymous)
                });
                self.add_as(name.clone(), child, true, objects)?;
                name
            }
        };
        let child = self.nodes.get_mut(&name).ok_or_else(|| no_node(&name))?;
        child.parents.push(parent.to_owned());
        Ok(name)
    }

    /// Returns the images that a new node needs by their names, once this process is confined.
    pub(super) fn named_files(&self, options: &BlockdevOptions) -> Vec<(PathBuf, FileRequest)> {
        let (mut files, mut options) = (Vec::new(), options.clone());
        options.pass_down();
        let mut next = self.confined.then_some(&options);
        while let Some(options) = next {
            if let Some(path) = &options.filename
                && !FdSets::has_name(path)
            {
                let request = FileRequest {
                    writable: !options.is_read_only(),
                    or_read_only: options.is_auto_read_only(),
                    direct: options.cache.is_direct(),
                };
                files.push((path.clone(), request));
            }
            next = match options.file.as_deref() {
                Some(BlockdevRef::New(below)) => Some(below),
                _ => None,
            };
        }
        files
    }

    /// Opens a file or a block device.
    fn open(&mut self, options: &BlockdevOptions) -> Result<Arc<BlockNode>, OperationError> {
        let path = require("filename", options.filename.clone())?;
        // With a migration, the source has checked the format. Reading here would cache data that the source still
        // changes.
        if options.probe && options.active != Some(false) {
            check_format(&path)?;
        }
        let mut open = OpenOptions {
            path,
            read_only: options.is_read_only(),
            direct: options.cache.is_direct(),
            no_flush: options.cache.ignores_flushes(),
            unmap: options.unmaps(),
            locking: options.locking != Some(OnOffAuto::Off),
            ..OpenOptions::default()
        };
        let node = match self.open_as(&open) {
            Err(
                OperationError::Image(storage::Error::NotWritable { .. })
                | OperationError::NoDescriptor { .. },
            ) if options.is_auto_read_only() => {
                open.read_only = true;
                self.open_as(&open)?
            }
            opened => opened?,
        };
        match (options.driver, node.is_device()) {
            (Driver::HostDevice, false) => Err(OperationError::NoDevice { path: open.path }),
            _ => Ok(Arc::new(node)),
        }
    }

    /// Opens a file or a block device by its path, or takes it from a set of descriptors or from those that were opened for
    /// this operation.
    fn open_as(&mut self, options: &OpenOptions) -> Result<BlockNode, OperationError> {
        let path = options.path.to_str().unwrap_or_default();
        match self.fdsets.open(path, !options.read_only) {
            Some(Ok((file, direct))) => Ok(BlockNode::from_file(file, direct, options)?),
            Some(Err(source)) => Err(OperationError::NoDescriptor {
                path: options.path.clone(),
                source,
            }),
            None if self.confined => self.take_opened(options),
            None => Ok(BlockNode::open(options)?),
        }
    }

    /// Takes an image that was opened for this operation.
    fn take_opened(&mut self, options: &OpenOptions) -> Result<BlockNode, OperationError> {
        let place = self.opened.iter().position(|opened| opened.path == options.path);
        let path = || options.path.clone();
        let place = place.ok_or_else(|| OperationError::Confined {
            path: path(),
            hint: "",
        })?;
        let mode = fcntl_getfl(&self.opened[place].image).map_err(io::Error::from);
        let mode = mode.map_err(|source| storage::Error::Open { path: path(), source })?;
        if !options.read_only && mode & OFlags::RWMODE != OFlags::RDWR {
            return Err(storage::Error::NotWritable {
                path: path(),
                why: "it could be opened for reading only".to_owned(),
                source: io::ErrorKind::PermissionDenied.into(),
            }
            .into());
        }
        let OpenedFile { image, direct, .. } = self.opened.swap_remove(place);
        Ok(BlockNode::from_file(image, direct, options)?)
    }

    /// Removes an unused node, and the nodes below that were made with it. `exported` returns the export of a node.
    pub(super) fn remove(
        &mut self,
        name: &str,
        exported: impl Fn(&str) -> Option<String>,
    ) -> Result<(), OperationError> {
        let node = self.get(name)?;
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
            next = child.filter(|child| self.nodes.get(*child).is_some_and(|below| below.owned));
        }
        let child = self.nodes.remove(name);
        if let Some(child) = child.as_ref().and_then(Node::child) {
            self.let_go(child, name);
        }
        Ok(())
    }

    /// Removes `parent` from the parents of `child`. A node that was made with its parent is removed with the last one.
    fn let_go(&mut self, child: &str, parent: &str) {
        let Some(below) = self.nodes.get_mut(child) else {
            return;
        };
        below.parents.retain(|known| known != parent);
        if below.owned
            && below.parents.is_empty()
            && let Some(gone) = self.nodes.remove(child)
            && let Some(next) = gone.child()
        {
            self.let_go(next, child);
        }
    }
}

fn no_node(name: &str) -> OperationError {
    OperationError::NoNode {
        name: name.to_owned(),
    }
}

/// Refuses options that do not fit the driver, and options that are not supported.
fn check(options: &BlockdevOptions) -> Result<(), OperationError> {
    use Driver::{File, HostDevice, Nbd, NullAio, NullCo, Raw, Throttle};
    let driver = options.driver;
    let file = matches!(driver, File | HostDevice);
    let null = matches!(driver, NullCo | NullAio);
    refuse(&[
        ("filename", !file && options.filename.is_some()),
        ("locking", !file && options.locking.is_some()),
        ("aio", !file && options.aio.is_some()),
        ("aio-max-batch", !file && options.aio_max_batch.is_some()),
        (
            "file",
            !matches!(driver, Raw | Throttle) && options.file.is_some(),
        ),
        ("offset", driver != Raw && options.offset.is_some()),
        ("size", driver != Raw && !null && options.size.is_some()),
        ("latency-ns", !null && options.latency_ns.is_some()),
        ("read-zeroes", !null && options.read_zeroes.is_some()),
        (
            "throttle-group",
            driver != Throttle && options.throttle_group.is_some(),
        ),
        ("server", driver != Nbd && options.server.is_some()),
        ("export", driver != Nbd && options.export.is_some()),
        (
            "reconnect-delay",
            driver != Nbd && options.reconnect_delay.is_some(),
        ),
        ("open-timeout", driver != Nbd && options.open_timeout.is_some()),
    ])?;
    if options.aio == Some(AioOption::Native) && !options.cache.is_direct() {
        return Err(engine::Error::NativeBuffered.into());
    }
    if options.shares_writing() && !options.is_read_only() {
        return Err(OperationError::ForceShare);
    }
    if options.detect_zeroes == DetectZeroes::Unmap && !options.unmaps() {
        return Err(OperationError::DetectWithoutDiscard);
    }
    Ok(())
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

/// Refuses an image whose format would be exposed to the guest instead of the disk inside.
fn check_format(path: &Path) -> Result<(), OperationError> {
    match foreign_format(path) {
        None => Ok(()),
        Some(format) => Err(OperationError::Format {
            path: path.to_owned(),
            format,
        }),
    }
}
