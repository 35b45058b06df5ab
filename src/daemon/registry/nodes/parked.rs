//! Nodes on their way from one process to the next.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};

use super::super::error::OperationError;
use super::super::objects::Objects;
use super::super::park_error::ParkError;
use super::add::null;
use super::open::open_options;
use super::{Kind, Node, Nodes};
use crate::daemon::options::{BlockdevOptions, Driver};
use crate::engine::BlockNode;
use crate::storage::{Content, OpenOptions, RawFile};
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
    /// The files that an image names, which are no nodes. Since format 2.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    files: Vec<ParkedFile>,
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

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct ParkedFile {
    path: PathBuf,
    image: ParkedImage,
    locking: bool,
}

/// The images that were passed for a node.
#[derive(Debug, Default)]
pub(in super::super) struct PassedFiles {
    /// The image, and the same file open for O_DIRECT.
    image: Option<(File, Option<File>)>,
    /// The files that the image names.
    named: Vec<Arc<RawFile>>,
}

impl Nodes {
    /// Describes all nodes, those below first, and tells how many were named by this process. Format 1 has no nodes of
    /// images in a format, nor on other machines.
    pub(in super::super) fn describe(
        &self,
        format: u32,
        bundle: &mut Bundle,
    ) -> Result<(Vec<ParkedNode>, u64), ParkError> {
        if let Some(name) = self.busy.first() {
            return Err(ParkError::Busy(name.to_owned()));
        }
        let mut names: Vec<&String> = self.nodes.keys().collect();
        names.sort_by_cached_key(|name| self.height(name));
        let nodes = names.into_iter().map(|name| {
            let (node, driver) = (&self.nodes[name], self.nodes[name].options.driver);
            match driver {
                Driver::Nbd | Driver::Rbd | Driver::Qcow2 if format < 2 => Err(ParkError::Driver {
                    name: name.to_owned(),
                    driver: driver.name(),
                }),
                _ => describe(name, node, bundle),
            }
        });
        Ok((nodes.collect::<Result<_, _>>()?, self.anonymous))
    }

    /// Returns the number of nodes from this one down, on the longest way.
    fn height(&self, name: &str) -> usize {
        // Ends, because no node is below itself.
        let below = self.nodes.get(name).map(Node::below).unwrap_or_default();
        let highest = below.iter().map(|name| self.height(name)).max();
        1 + highest.unwrap_or_default()
    }

    pub(in super::super) fn set_anonymous(&mut self, anonymous: u64) {
        self.anonymous = anonymous;
    }

    /// Makes a node. Those below exist.
    pub(in super::super) fn restore(
        &mut self,
        parked: ParkedNode,
        files: PassedFiles,
        objects: &Objects,
    ) -> Result<(), OperationError> {
        let ParkedNode { name, options, .. } = parked;
        let group = parked
            .throttle_group
            .as_deref()
            .map(|id| objects.group(id))
            .transpose()?;
        let kind = match (parked.child, files.image) {
            (Some(child), _) if options.driver == Driver::Qcow2 => {
                self.restore_format(&options, child, files.named)?
            }
            (Some(child), _) => {
                // A node that was made inactive later.
                let active = options.active.filter(|_| parked.active).or(Some(parked.active));
                let options = BlockdevOptions {
                    active,
                    ..options.clone()
                };
                self.filter(&name, &options, &child, group)?
            }
            (None, Some((file, direct))) => {
                let read_only = parked.image.is_some_and(|image| image.read_only);
                let open = OpenOptions {
                    read_only,
                    ..open_options(&options)?
                };
                Kind::Leaf(Arc::new(BlockNode::from_file(file, direct, &open)?))
            }
            (None, None) => match self.restore_remote(&options, objects)? {
                Some(leaf) => Kind::Leaf(leaf),
                None => Kind::Leaf(null(&options)),
            },
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

impl Nodes {
    /// Opens an image on another machine, beside the old process. That may be in the hands of a guest: once confined, this
    /// process connects only to what its own options name.
    fn restore_remote(
        &self,
        options: &BlockdevOptions,
        objects: &Objects,
    ) -> Result<Option<Arc<BlockNode>>, OperationError> {
        if !matches!(options.driver, Driver::Nbd | Driver::Rbd) {
            return Ok(None);
        }
        let mut images = self.images(Vec::new(), objects.credentials());
        let options = BlockdevOptions {
            // The old process waits for this one, and the server is there.
            open_timeout: None,
            ..options.clone()
        };
        match images.open_remote(&options) {
            Err(OperationError::ConfinedServer { .. } | OperationError::ConfinedCluster) => {
                Err(OperationError::UnnamedRemote)
            }
            opened => opened.map(Some),
        }
    }
}

fn describe(name: &str, node: &Node, bundle: &mut Bundle) -> Result<ParkedNode, ParkError> {
    let (child, group, disk) = match &node.kind {
        Kind::Leaf(leaf) => (None, None, Some(leaf)),
        Kind::Raw { child, .. } => (Some(child), None, None),
        Kind::Throttle { child, group } => (Some(child), Some(group), None),
        Kind::Format { child, disk, .. } => (Some(child), None, Some(disk)),
    };
    if let Some(disk) = disk.filter(|disk| disk.flushes_fail()) {
        return Err(ParkError::Flush(disk.path().to_owned()));
    }
    let image = match disk.map(|disk| &**disk) {
        Some(BlockNode::File(file)) => Some(describe_file(file, bundle)?),
        _ => None,
    };
    let (by_data_file, by_backing) = (node.options.data_file.is_none(), node.options.backing.is_none());
    let named = disk.map(|disk| disk.named_files(by_data_file, by_backing));
    let files = named.unwrap_or_default().into_iter().map(|file| {
        Ok(ParkedFile {
            path: file.path().to_owned(),
            image: describe_file(file, bundle)?,
            locking: file.locks(),
        })
    });
    let files = files.collect::<io::Result<_>>()?;
    Ok(ParkedNode {
        name: name.to_owned(),
        options: node.options.clone(),
        child: child.cloned(),
        throttle_group: group.map(|group| group.name().to_owned()),
        image,
        files,
        parents: node.parents.clone(),
        owned: node.owned,
        active: node.is_active(),
    })
}

fn describe_file(file: &RawFile, bundle: &mut Bundle) -> io::Result<ParkedImage> {
    Ok(ParkedImage {
        file: bundle.add(file)?,
        direct: file.sibling().map(|direct| bundle.add(direct)).transpose()?,
        read_only: file.limits().read_only,
    })
}

impl ParkedImage {
    fn take(self, bundle: &mut Bundle) -> Result<(File, Option<File>), MissingFile> {
        let file = bundle.take(self.file)?.into();
        Ok((file, bundle.take_file(self.direct)?))
    }
}

impl ParkedNode {
    pub(in super::super) fn name(&self) -> &str {
        &self.name
    }

    /// Returns whether the node is an image in a Ceph cluster.
    pub(in super::super) fn is_in_cluster(&self) -> bool {
        self.options.driver == Driver::Rbd
    }

    /// Takes the files of the node's image.
    pub(in super::super) fn take_files(&self, bundle: &mut Bundle) -> Result<PassedFiles, ParkError> {
        let image = self.image.map(|image| image.take(bundle)).transpose()?;
        let named = self.files.iter().map(|parked| {
            let (file, direct) = parked.image.take(bundle)?;
            let options = OpenOptions {
                path: parked.path.clone(),
                read_only: parked.image.read_only,
                direct: self.options.cache.is_direct(),
                locking: parked.locking,
                content: Content::Part,
                ..OpenOptions::default()
            };
            let file = RawFile::from_file(file, direct, &options);
            Ok(Arc::new(file.map_err(|source| ParkError::File {
                path: options.path,
                source,
            })?))
        });
        let named = named.collect::<Result<_, ParkError>>()?;
        Ok(PassedFiles { image, named })
    }
}
