//! Opens the images of nodes. Any thread; the file system may take its time.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{OFlags, fcntl_getfl};

use super::clusters::Clusters;
use super::lines::Lines;
use crate::daemon::options::{BlockdevOptions, Driver, OnOffAuto};
use crate::daemon::registry::error::{OperationError, require};
use crate::daemon::registry::objects::Credentials;
use crate::daemon::registry::waiting::OpenedFile;
use crate::engine::{BlockNode, Look, RemoteOptions};
use crate::opener::FileRequest;
use crate::qmp::FdSets;
use crate::storage::{self, Content, OpenOptions, foreign_format, foreign_format_of};

/// The places that images come from.
#[derive(Debug)]
pub(in super::super) struct Images {
    /// File descriptors that QMP clients have passed.
    pub(super) fdsets: FdSets,
    pub(super) lines: Lines,
    pub(super) clusters: Clusters,
    pub(super) credentials: Credentials,
    /// Files can no longer be opened by path.
    pub(super) confined: bool,
    /// Images that were opened for this operation.
    pub(super) opened: Vec<OpenedFile>,
    /// Take descriptors only if their flags are right already, because others may use them meanwhile.
    pub(super) keep_flags: bool,
}

/// Returns the image that new nodes need by its name.
pub(super) fn named_file(top: &BlockdevOptions) -> Option<(PathBuf, FileRequest)> {
    let options = top.all().last()?;
    let path = options.filename.as_ref().filter(|path| !FdSets::has_name(path))?;
    let request = FileRequest {
        writable: !options.is_read_only(),
        or_read_only: options.is_auto_read_only(),
        direct: options.cache.is_direct(),
    };
    Some((path.clone(), request))
}

impl Images {
    /// Leaves the flags of descriptors alone, because nodes may use them.
    pub(in super::super) fn for_reopen(self) -> Self {
        Self {
            keep_flags: true,
            ..self
        }
    }

    /// Opens the image at the bottom of new nodes, if there is one.
    pub(in super::super) fn open_leaf(
        &mut self,
        top: &BlockdevOptions,
    ) -> Result<Option<Arc<BlockNode>>, OperationError> {
        let Some(options) = top.all().last() else {
            return Ok(None);
        };
        let is_image = top.all().any(|options| options.driver == Driver::Qcow2);
        let content = if is_image { Content::Image } else { Content::Disk };
        match options.driver {
            Driver::File | Driver::HostDevice => self.open(options, content).map(Some),
            Driver::Nbd | Driver::Rbd => self.open_remote(options).map(Some),
            _ => Ok(None),
        }
    }

    /// Opens a disk on another machine.
    pub(super) fn open_remote(
        &mut self,
        options: &BlockdevOptions,
    ) -> Result<Arc<BlockNode>, OperationError> {
        let node = match options.driver {
            Driver::Rbd => self.open_rbd(options)?,
            _ => self.open_nbd(options)?,
        };
        match node.foreign_format().filter(|_| options.probe) {
            None => Ok(Arc::new(node)),
            Some(format) => Err(OperationError::Format {
                path: node.path().to_owned(),
                format,
                driver: options.driver,
            }),
        }
    }

    /// Opens a file or a block device.
    fn open(
        &mut self,
        options: &BlockdevOptions,
        content: Content,
    ) -> Result<Arc<BlockNode>, OperationError> {
        let mut open = OpenOptions {
            content,
            ..open_options(options)?
        };
        // With a migration, the source has checked the format. Reading here would cache data that the source still
        // changes.
        let probe = options.probe && options.active != Some(false);
        if probe && !self.confined && !FdSets::has_name(&open.path) {
            check_format(&open.path, foreign_format(&open.path))?;
        }
        let node = match self.open_as(&open, probe) {
            Err(
                OperationError::Image(storage::Error::NotWritable { .. })
                | OperationError::NoDescriptor { .. },
            ) if options.is_auto_read_only() => {
                open.read_only = true;
                self.open_as(&open, probe)?
            }
            opened => opened?,
        };
        match (options.driver, node.is_device()) {
            (Driver::HostDevice, false) => Err(OperationError::NoDevice { path: open.path }),
            _ => Ok(Arc::new(node)),
        }
    }

    /// Opens a file or a block device by its path, or takes it from a set of descriptors or from those that were opened for
    /// this operation. With `probe`, a descriptor of an image that looks like another format is refused.
    fn open_as(&mut self, options: &OpenOptions, probe: bool) -> Result<BlockNode, OperationError> {
        let path = options.path.to_str().unwrap_or_default();
        let found = self
            .fdsets
            .open(path, !options.read_only, options.direct, self.keep_flags);
        match found {
            Some(Ok((file, direct))) => node_of(file, direct, options, probe),
            Some(Err(error)) if error.kind() == io::ErrorKind::ResourceBusy => {
                Err(OperationError::DescriptorFlags {
                    path: options.path.clone(),
                    with: if options.direct { "with" } else { "without" },
                })
            }
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
                Err(OperationError::NoDescriptors {
                    path: options.path.clone(),
                })
            }
            Some(Err(source)) => Err(OperationError::NoDescriptor {
                path: options.path.clone(),
                source,
            }),
            None if self.confined => self.take_opened(options, probe),
            None => Ok(BlockNode::open(options)?),
        }
    }

    /// Takes an image that was opened for this operation.
    fn take_opened(&mut self, options: &OpenOptions, probe: bool) -> Result<BlockNode, OperationError> {
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
        node_of(image, direct, options, probe)
    }
}

/// Makes the node of an open image.
fn node_of(
    image: File,
    direct: Option<File>,
    options: &OpenOptions,
    probe: bool,
) -> Result<BlockNode, OperationError> {
    // Before the size is looked at: that of an image in another format says nothing about its disk.
    if probe {
        check_format(&options.path, foreign_format_of(&image))?;
    }
    Ok(BlockNode::from_file(image, direct, options)?)
}

/// Returns the options to open an image with.
pub(super) fn open_options(options: &BlockdevOptions) -> Result<OpenOptions, OperationError> {
    Ok(OpenOptions {
        path: require("filename", options.filename.clone())?,
        read_only: options.is_read_only(),
        direct: options.cache.is_direct(),
        no_flush: options.cache.ignores_flushes(),
        unmap: options.unmaps(),
        locking: options.locking != Some(OnOffAuto::Off),
        map: options.mmap != Some(false),
        ..OpenOptions::default()
    })
}

/// Refuses an image whose format would be exposed to the guest instead of the disk inside.
fn check_format(path: &Path, format: io::Result<Option<&'static str>>) -> Result<(), OperationError> {
    let path = path.to_owned();
    match format {
        Ok(None) => Ok(()),
        Err(source) => Err(storage::Error::Unread { path, source }.into()),
        Ok(Some(format)) => Err(OperationError::Format {
            path,
            format,
            driver: Driver::File,
        }),
    }
}

/// Returns the options to open a disk on another machine with.
pub(super) fn remote_options(options: &BlockdevOptions) -> RemoteOptions {
    RemoteOptions {
        read_only: options.is_read_only(),
        auto_read_only: options.is_auto_read_only(),
        unmap: options.unmaps(),
        no_flush: options.cache.ignores_flushes(),
        look: match options.active {
            // As for files: with a migration, the source has checked the format.
            Some(false) => Look::Skip,
            _ if options.probe => Look::Insist,
            _ => Look::Warn,
        },
    }
}
