//! Nodes on their way from one process to the next.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};

use super::super::error::OperationError;
use super::super::objects::Objects;
use super::super::succession::{ImageFiles, ParkError};
use super::open::open_options;
use super::{Kind, Node, Nodes, null};
use crate::daemon::options::{BlockdevOptions, Driver};
use crate::engine::BlockNode;
use crate::storage::OpenOptions;
use crate::succession::{Bundle, MissingFile};

/// A node of another process. Numbers of type `usize` are places in the [`Bundle`].
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(in super::super) struct ParkedNode {
    name: String,
    options: BlockdevOptions,
    /// The node below.
    child: Option<String>,
    throttle_group: Option<String>,
    image: Option<ParkedImage>,
    parents: Vec<String>,
    owned: bool,
    active: bool,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct ParkedImage {
    file: usize,
    /// The same file, open for O_DIRECT.
    direct: Option<usize>,
    read_only: bool,
}

impl Nodes {
    /// Describes all nodes, those below first, and tells how many were named by this process.
    pub(in super::super) fn describe(
        &self,
        bundle: &mut Bundle,
    ) -> Result<(Vec<ParkedNode>, u64), ParkError> {
        if let Some(name) = self.busy.first() {
            return Err(ParkError::Busy(name.to_owned()));
        }
        let mut names: Vec<&String> = self.nodes.keys().collect();
        names.sort_by_key(|name| self.path_down(name).len());
        let nodes = names
            .into_iter()
            .map(|name| describe(name, &self.nodes[name], bundle));
        Ok((nodes.collect::<Result<_, _>>()?, self.anonymous))
    }

    pub(in super::super) fn set_anonymous(&mut self, anonymous: u64) {
        self.anonymous = anonymous;
    }

    /// Makes a node. Those below exist.
    pub(in super::super) fn restore(
        &mut self,
        parked: ParkedNode,
        files: ImageFiles,
        objects: &Objects,
    ) -> Result<(), OperationError> {
        let ParkedNode { name, options, .. } = parked;
        let group = parked
            .throttle_group
            .as_deref()
            .map(|id| objects.group(id))
            .transpose()?;
        let kind = match (parked.child, files) {
            (Some(child), _) => self.filter(&name, &options, &child, group)?,
            (None, Some((file, direct))) => {
                let read_only = parked.image.is_some_and(|image| image.read_only);
                let open = OpenOptions {
                    read_only,
                    ..open_options(&options)?
                };
                Kind::Leaf(Arc::new(BlockNode::from_file(file, direct, &open)?))
            }
            (None, None) => Kind::Leaf(null(&options)),
        };
        let node = Node {
            options,
            kind,
            parents: parked.parents,
            owned: parked.owned,
            active: Arc::new(AtomicBool::new(parked.active)),
        };
        match self.nodes.insert(name.clone(), node) {
            None => Ok(()),
            Some(_) => Err(OperationError::NodeExists { name }),
        }
    }
}

fn describe(name: &str, node: &Node, bundle: &mut Bundle) -> Result<ParkedNode, ParkError> {
    let (child, group, leaf) = match &node.kind {
        Kind::Leaf(leaf) => (None, None, Some(leaf)),
        Kind::Raw { child, .. } => (Some(child), None, None),
        Kind::Throttle { child, group } => (Some(child), Some(group), None),
        Kind::Format { .. } => return Err(unsupported(name, node)),
    };
    let image = match (node.options.driver, leaf) {
        (Driver::Nbd | Driver::Rbd | Driver::Qcow2, _) => return Err(unsupported(name, node)),
        (_, None) => None,
        (_, Some(leaf)) if leaf.flushes_fail() => return Err(ParkError::Flush(leaf.path().to_owned())),
        (_, Some(leaf)) => match leaf.files() {
            None => None,
            Some((file, direct)) => Some(ParkedImage {
                file: bundle.add(file)?,
                direct: direct.map(|direct| bundle.add(direct)).transpose()?,
                read_only: leaf.limits().read_only,
            }),
        },
    };
    Ok(ParkedNode {
        name: name.to_owned(),
        options: node.options.clone(),
        child: child.cloned(),
        throttle_group: group.map(|group| group.name().to_owned()),
        image,
        parents: node.parents.clone(),
        owned: node.owned,
        active: node.is_active(),
    })
}

fn unsupported(name: &str, node: &Node) -> ParkError {
    ParkError::Driver {
        name: name.to_owned(),
        driver: node.options.driver.name(),
    }
}

impl ParkedNode {
    pub(in super::super) fn name(&self) -> &str {
        &self.name
    }

    /// Takes the files of the node's image.
    pub(in super::super) fn take_files(&self, bundle: &mut Bundle) -> Result<ImageFiles, MissingFile> {
        let Some(image) = self.image else { return Ok(None) };
        let file = bundle.take(image.file)?.into();
        Ok(Some((file, bundle.take_file(image.direct)?)))
    }
}
