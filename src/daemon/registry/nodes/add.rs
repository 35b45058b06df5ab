//! Adds nodes.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::super::error::{OperationError, require};
use super::super::objects::Objects;
use super::check::check;
use super::{Kind, Node, Nodes, Opened, Part, no_node};
use crate::daemon::options::{BlockdevOptions, BlockdevRef, Driver, is_well_formed};
use crate::engine::BlockNode;
use crate::throttle::Group;

/// The longest name of a node in bytes, as in QEMU.
const LONGEST_NAME: usize = 31;

/// Default size of a null disk in bytes, as in QEMU.
const NULL_SIZE: u64 = 1 << 30;

impl Nodes {
    /// Checks new nodes as far as that is possible before their image is open.
    pub(in crate::daemon::registry) fn check_add(
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
    pub(in crate::daemon::registry) fn add(
        &mut self,
        options: BlockdevOptions,
        opened: Opened,
        objects: &Objects,
    ) -> Result<(), OperationError> {
        self.check_add(&options, objects)?;
        let name = options.node_name.clone().ok_or(OperationError::NoNodeName)?;
        self.add_as(name, options, false, opened, objects)
    }

    pub(super) fn add_as(
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
    pub(super) fn filter(
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
}

pub(super) fn null(options: &BlockdevOptions) -> Arc<BlockNode> {
    let size = options.size.unwrap_or(NULL_SIZE);
    let latency = options.latency_ns.filter(|latency| *latency > 0);
    let zeroes = options.read_zeroes == Some(true);
    Arc::new(BlockNode::null_disk(
        size,
        latency.map(Duration::from_nanos),
        zeroes,
    ))
}
