//! Nodes of image formats.

use std::sync::Arc;

use super::super::error::{OperationError, require};
use super::{Images, Kind, Nodes, Opened};
use crate::daemon::options::{BackingRef, BlockdevOptions, BlockdevRef, Driver, OnOffAuto};
use crate::engine::{BackingOption, BlockNode, CacheOptions, Qcow2Disk, Qcow2Options};
use crate::storage::{OpenOptions, RawFile};

/// The nodes that a new node of an image format uses and that exist already.
#[derive(Debug, Default)]
pub(in super::super) struct Parts {
    file: Option<Arc<BlockNode>>,
    backing: BackingOption,
    data_file: Option<Arc<BlockNode>>,
}

impl Nodes {
    /// Checks the options of a node of an image format.
    pub(super) fn check_format(&self, options: &BlockdevOptions) -> Result<(), OperationError> {
        if options.driver != Driver::Qcow2 {
            return Ok(());
        }
        if options.active == Some(false) {
            return Err(OperationError::InactiveFormat);
        }
        if let Some(BlockdevRef::New(below)) = options.file.as_deref()
            && !matches!(below.driver, Driver::File | Driver::HostDevice)
        {
            return Err(OperationError::FormatChild {
                driver: below.driver.name(),
            });
        }
        self.parts_of(options).map(drop)
    }

    /// Returns the existing nodes that new nodes need.
    pub(in super::super) fn parts(&self, top: &BlockdevOptions) -> Result<Parts, OperationError> {
        let format = top.all().find(|options| options.driver == Driver::Qcow2);
        format.map_or_else(|| Ok(Parts::default()), |options| self.parts_of(options))
    }

    fn parts_of(&self, options: &BlockdevOptions) -> Result<Parts, OperationError> {
        let file = match options.file.as_deref() {
            Some(BlockdevRef::Name(name)) => Some(self.part(name)?),
            _ => None,
        };
        let data_file = options.data_file.as_ref();
        Ok(Parts {
            file,
            backing: match &options.backing {
                None => BackingOption::Header,
                Some(BackingRef::None) => BackingOption::None,
                Some(BackingRef::Name(name)) => BackingOption::Node(self.part(name)?),
            },
            data_file: data_file.map(|name| self.part(name)).transpose()?,
        })
    }

    /// Returns the disk of a node that an image consists of. It must be a whole one, and without limits.
    pub(super) fn part(&self, name: &str) -> Result<Arc<BlockNode>, OperationError> {
        self.busy.check(name)?;
        let below = self.resolve(name)?;
        let view = &below.view;
        if !view.activity.get() {
            return Err(OperationError::InactivePart {
                name: name.to_owned(),
            });
        }
        match view.start == 0 && view.max_size == u64::MAX && below.group.is_none() {
            true => Ok(Arc::clone(&view.node)),
            false => Err(OperationError::FormatPart {
                name: name.to_owned(),
            }),
        }
    }

    /// Makes the node of the `disk` in the image `child`.
    pub(super) fn format(
        &mut self,
        name: &str,
        options: &BlockdevOptions,
        child: &str,
        disk: Arc<BlockNode>,
    ) -> Result<Kind, OperationError> {
        if self.nodes.contains_key(name) {
            // The node below has taken the name.
            let name = name.to_owned();
            return Err(OperationError::NodeExists { name });
        }
        let others = others(options);
        for (_, other) in &others {
            self.get(other)?;
        }
        for (_, other) in &others {
            if let Some(other) = self.nodes.get_mut(other) {
                other.parents.push(name.to_owned());
            }
        }
        Ok(Kind::Format {
            child: child.to_owned(),
            others,
            disk,
        })
    }

    /// Makes the kind of a node of another process again, with the files that its image names. The nodes that it uses
    /// exist, and know it.
    pub(super) fn restore_format(
        &self,
        options: &BlockdevOptions,
        child: String,
        named: Vec<Arc<RawFile>>,
    ) -> Result<Kind, OperationError> {
        let parts = self.parts_of(options)?;
        let described = Qcow2Options {
            backing: parts.backing,
            data_file: parts.data_file,
            passed: Some(named),
            ..described(options)
        };
        let disk = Qcow2Disk::open(&self.part(&child)?, &described)?;
        Ok(Kind::Format {
            child,
            others: others(options),
            disk: Arc::new(disk.into()),
        })
    }

    /// Returns the number of layers below a node, as QEMU counts them: backing files, and nodes below filters.
    pub(in super::super) fn backing_depth(&self, name: &str) -> usize {
        match self.nodes.get(name).map(|node| &node.kind) {
            Some(Kind::Format { disk, .. }) => disk.backing_depth(),
            Some(Kind::Throttle { child, .. }) => 1 + self.backing_depth(child),
            Some(Kind::Leaf(_) | Kind::Raw { .. }) | None => 0,
        }
    }

    /// Returns whether a node, or one above it, is of an image format.
    pub(super) fn is_in_format(&self, name: &str) -> bool {
        self.nodes.get(name).is_some_and(|node| {
            matches!(node.kind, Kind::Format { .. })
                || node.parents.iter().any(|parent| self.is_in_format(parent))
        })
    }
}

/// Returns the options of a disk, without the nodes that it uses. The files that the image names are opened as the image
/// itself, if that is part of the same node.
fn described(options: &BlockdevOptions) -> Qcow2Options {
    let below = options.all().nth(1);
    Qcow2Options {
        read_only: options.is_read_only(),
        follow_names: options.follow_names == Some(true),
        cache: CacheOptions {
            total: options.cache_size,
            l2: options.l2_cache_size,
            refcounts: options.refcount_cache_size,
            entry: options.l2_cache_entry_size,
            clean_interval: options.cache_clean_interval,
        },
        files: OpenOptions {
            direct: options.cache.is_direct(),
            locking: below.is_none_or(|below| below.locking != Some(OnOffAuto::Off)),
            map: below.is_none_or(|below| below.mmap != Some(false)),
            ..OpenOptions::default()
        },
        ..Qcow2Options::default()
    }
}

/// Returns the nodes besides the file that a node of an image format uses, with their roles.
fn others(options: &BlockdevOptions) -> Vec<(&'static str, String)> {
    let backing = match &options.backing {
        Some(BackingRef::Name(name)) => Some(("backing", name.clone())),
        _ => None,
    };
    let data_file = options.data_file.clone().map(|name| ("data-file", name));
    backing.into_iter().chain(data_file).collect()
}

impl Images {
    /// Opens the image at the bottom of new nodes, and the disk in it if they have an image format.
    pub(in super::super) fn open_all(
        &mut self,
        top: &BlockdevOptions,
        parts: Parts,
    ) -> Result<Opened, OperationError> {
        let leaf = self.open_leaf(top)?;
        let Some(options) = top.all().find(|options| options.driver == Driver::Qcow2) else {
            return Ok(Opened { leaf, disk: None });
        };
        if options.follow_names == Some(true) && self.confined {
            return Err(OperationError::ConfinedNames);
        }
        let file = require("file", leaf.clone().or(parts.file))?;
        let described = Qcow2Options {
            backing: parts.backing,
            data_file: parts.data_file,
            ..described(options)
        };
        let disk = Qcow2Disk::open(&file, &described)?;
        Ok(Opened {
            leaf,
            disk: Some(Arc::new(disk.into())),
        })
    }
}
