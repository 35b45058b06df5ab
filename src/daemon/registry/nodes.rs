//! Block nodes by name: files, devices and null disks, and the filters above them.

mod reopen;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_getfl};

use super::error::{OperationError, refuse, require};
use super::names::OpenedFile;
use super::objects::Objects;
use crate::daemon::options::{
    AioOption, BlockdevOptions, BlockdevRef, DetectZeroes, Discard, Driver, OnOffAuto, is_well_formed,
};
use crate::engine::{self, BlockNode, Choice};
use crate::opener::FileRequest;
use crate::qmp::FdSets;
use crate::storage::{self, OpenOptions, foreign_format};
use crate::throttle::Group;

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
    anonymous: bool,
}

#[derive(Clone, Debug)]
enum Kind {
    /// A disk.
    Leaf(Arc<BlockNode>),
    /// Passes everything through to the node below.
    Raw { child: String },
    /// Limits the I/O to the node below.
    Throttle { child: String, group: Arc<Group> },
}

/// The disk that an export of a node serves.
#[derive(Clone, Debug)]
pub(super) struct Resolved {
    pub(super) leaf: Arc<BlockNode>,
    /// The engine for its I/O.
    pub(super) engine: Choice,
    /// The maximum number of requests in one submission to the kernel, or 0 for no maximum of its own.
    pub(super) max_batch: u64,
    pub(super) group: Option<Arc<Group>>,
    pub(super) read_only: bool,
    /// No other process uses the image now.
    pub(super) active: bool,
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

    /// Returns the name of the node below, if any.
    pub fn child(&self) -> Option<&str> {
        match &self.kind {
            Kind::Leaf(_) => None,
            Kind::Raw { child } | Kind::Throttle { child, .. } => Some(child),
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
    pub(super) fn add(&mut self, options: BlockdevOptions, objects: &Objects) -> Result<(), OperationError> {
        let name = options.node_name.clone().ok_or(OperationError::NoNodeName)?;
        self.add_as(name, options, false, objects)
    }

    fn add_as(
        &mut self,
        name: String,
        options: BlockdevOptions,
        anonymous: bool,
        objects: &Objects,
    ) -> Result<(), OperationError> {
        if !anonymous && !is_well_formed(&name) {
            return Err(OperationError::BadId { id: name });
        }
        if self.nodes.contains_key(&name) {
            return Err(OperationError::NodeExists { name });
        }
        check(&options)?;
        let kind = match options.driver {
            Driver::File | Driver::HostDevice => Kind::Leaf(self.open(&options)?),
            Driver::NullCo | Driver::NullAio => Kind::Leaf(null(&options)),
            Driver::Raw => Kind::Raw {
                child: self.child(&name, &options, objects)?,
            },
            Driver::Throttle => {
                let group = require("throttle-group", options.throttle_group.as_deref())?;
                Kind::Throttle {
                    group: objects.group(group)?,
                    child: self.child(&name, &options, objects)?,
                }
            }
        };
        let node = Node {
            options,
            kind,
            parents: Vec::new(),
            anonymous,
        };
        self.nodes.insert(name, node);
        Ok(())
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
                let mut child = child.clone();
                // As in QEMU, the node below inherits this option.
                child.read_only |= options.read_only;
                let anonymous = child.node_name.is_none();
                let name = child.node_name.clone().unwrap_or_else(|| {
                    self.anonymous += 1;
                    format!("#block{:03}", self.anonymous)
                });
                self.add_as(name.clone(), child, anonymous, objects)?;
                name
            }
        };
        let child = self.nodes.get_mut(&name).ok_or_else(|| no_node(&name))?;
        child.parents.push(parent.to_owned());
        Ok(name)
    }

    /// Returns the images that a new node needs by their names, once this process is confined.
    pub(super) fn named_files(&self, options: &BlockdevOptions) -> Vec<(PathBuf, FileRequest)> {
        let mut files = Vec::new();
        let (mut next, mut read_only) = (self.confined.then_some(options), false);
        while let Some(options) = next {
            read_only |= options.read_only;
            if let Some(path) = &options.filename
                && !FdSets::has_name(path)
            {
                let request = FileRequest {
                    writable: !read_only,
                    or_read_only: options.auto_read_only,
                    direct: options.cache.direct,
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
            read_only: options.read_only,
            direct: options.cache.direct,
            no_flush: options.cache.no_flush,
            unmap: options.discard == Discard::Unmap,
            locking: options.locking != Some(OnOffAuto::Off),
            ..OpenOptions::default()
        };
        let node = match self.open_as(&open) {
            Err(
                OperationError::Image(storage::Error::NotWritable { .. })
                | OperationError::NoDescriptor { .. },
            ) if options.auto_read_only => {
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
            Some(Ok(file)) => Ok(BlockNode::from_file(file, None, options)?),
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

    /// Removes an unused node, and the nodes below that were made with it.
    pub(super) fn remove(&mut self, name: &str) -> Result<(), OperationError> {
        let node = self.get(name)?;
        if let Some(parent) = node.parents.first() {
            return Err(OperationError::NodeInUse {
                name: name.to_owned(),
                by: format!("node '{parent}'"),
            });
        }
        let mut next = Some(name.to_owned());
        while let Some(name) = next.take() {
            let Some(child) = self
                .nodes
                .remove(&name)
                .and_then(|node| node.child().map(str::to_owned))
            else {
                return Ok(());
            };
            if let Some(below) = self.nodes.get_mut(&child) {
                below.parents.retain(|parent| *parent != name);
                next = (below.anonymous && below.parents.is_empty()).then_some(child);
            }
        }
        Ok(())
    }

    /// Returns the disk that an export of `name` would serve.
    pub(super) fn resolve(&self, name: &str) -> Result<Resolved, OperationError> {
        let node = self.get(name)?;
        let (read_only, active) = (node.options.read_only, node.options.active != Some(false));
        match &node.kind {
            Kind::Leaf(leaf) => Ok(Resolved {
                leaf: Arc::clone(leaf),
                engine: node.options.aio.map_or(Choice::Auto, Choice::from),
                max_batch: node.options.aio_max_batch.unwrap_or(0),
                group: None,
                read_only: leaf.limits().read_only,
                active,
            }),
            Kind::Raw { child } => {
                let below = self.resolve(child)?;
                Ok(Resolved {
                    read_only: below.read_only || read_only,
                    active: below.active && active,
                    ..below
                })
            }
            Kind::Throttle { child, group } => {
                let below = self.resolve(child)?;
                if below.group.is_some() {
                    return Err(OperationError::ThrottledTwice);
                }
                Ok(Resolved {
                    read_only: below.read_only || read_only,
                    active: below.active && active,
                    group: Some(Arc::clone(group)),
                    ..below
                })
            }
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
    use Driver::{File, HostDevice, NullAio, NullCo, Raw, Throttle};
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
    ])?;
    if options.aio == Some(AioOption::Native) && !options.cache.direct {
        return Err(engine::Error::NativeBuffered.into());
    }
    let missing = [
        ("force-share=on", options.force_share),
        ("detect-zeroes", options.detect_zeroes != DetectZeroes::Off),
        (
            "'offset' of driver 'raw'",
            options.offset.is_some_and(|offset| offset != 0),
        ),
        ("'size' of driver 'raw'", driver == Raw && options.size.is_some()),
    ];
    match missing.iter().find(|(_, given)| *given) {
        Some((what, _)) => Err(OperationError::Unsupported { what }),
        None => Ok(()),
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
