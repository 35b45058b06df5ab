//! Adds, removes and resizes nodes. Main thread only; storage is used on other threads.

use std::io;
use std::sync::Arc;

use super::error::OperationError;
use super::nodes::{Node, Opened};
use super::{Done, Registry, lost_by};
use crate::daemon::disks::Disk;
use crate::daemon::options::BlockdevOptions;
use crate::engine::DiskView;
use crate::vhost_user::Resizer;

impl Registry {
    /// Makes a node, and opens its image. Calls `done` when that is over.
    pub fn blockdev_add(&mut self, mut options: BlockdevOptions, done: Done) {
        options.pass_down();
        let wanted = self
            .nodes
            .check_add(&options, &self.objects)
            .and_then(|()| self.wanted_files([&options]));
        self.run_with(wanted, done, move |registry, given, done| {
            let (mut images, described) = (Self::images(registry, given.files), options.clone());
            // Files are opened in the meantime, and the nodes may be removed: they are checked again when a node is made.
            let parts = match registry.nodes.parts(&options) {
                Ok(parts) => parts,
                Err(refusal) => return done(Err(refusal)),
            };
            registry.run_aside(
                move || images.open_all(&described, parts),
                move |registry, opened| {
                    done(opened.and_then(|opened| registry.add_open(options, opened)));
                },
            );
        });
    }

    /// Makes a node whose image is open.
    fn add_open(&mut self, options: BlockdevOptions, opened: Opened) -> Result<(), OperationError> {
        let kept = opened.clone();
        let added = self.nodes.add(options, opened, &self.objects);
        if added.is_err() && kept.leaf.is_some() {
            self.drop_aside(kept);
        }
        added
    }

    /// Removes a node. Calls `done` when its image is closed.
    pub fn blockdev_del(&mut self, name: &str, done: Done) {
        let exports = self.exported();
        match self.nodes.remove(name, |name| exports.get(name).cloned()) {
            Err(refusal) => done(Err(refusal)),
            Ok(removed) => {
                let lost = lost_by(removed.iter().filter_map(Node::leaf));
                self.lost = self.lost.take().or(lost);
                let close = move || {
                    drop(removed);
                    Ok(())
                };
                self.run_aside(close, |_, closed| done(closed));
            }
        }
    }

    /// Changes the size of a disk, and tells the frontends of its exports. Calls `done` when that is over.
    pub fn block_resize(&mut self, name: &str, bytes: u64, done: Done) {
        let (view, end) = match self.check_resize(name, bytes) {
            Ok(checked) => checked,
            Err(refusal) => return done(Err(refusal)),
        };
        let (name, path) = (name.to_owned(), self.nodes.path_down(name));
        if let Err(refusal) = self.nodes.busy.mark(&path, "block_resize") {
            return done(Err(refusal));
        }
        let (before, leaf) = (view.size(), view.node);
        let resize = {
            let (name, leaf) = (name.clone(), leaf.clone());
            move || {
                leaf.resize(end)
                    .map_err(|source| OperationError::Resize { name, source })
            }
        };
        self.run_aside(resize, move |registry, resized| {
            registry.nodes.busy.clear(&path);
            if resized.is_ok() {
                tracing::info!(node = name, before, after = bytes, "disk resized");
                let resizers = registry.disks().map(Disk::resizer);
                resizers
                    .filter(|resizer| resizer.is_of(&leaf))
                    .for_each(Resizer::announce);
            }
            done(resized);
        });
    }

    /// Checks whether a node may become `bytes` long. Returns what it shows, and the new size of the image.
    fn check_resize(&self, name: &str, bytes: u64) -> Result<(DiskView, u64), OperationError> {
        let node = self.nodes.resolve(name)?;
        if !node.view.activity.get() {
            return Err(OperationError::ResizeInactive);
        }
        if node.read_only {
            return Err(OperationError::Resize {
                name: name.to_owned(),
                source: io::Error::new(io::ErrorKind::PermissionDenied, "the node is read-only"),
            });
        }
        if node.is_fixed {
            return Err(OperationError::FixedSize);
        }
        self.nodes.check_resize(name)?;
        let end = node.view.start.checked_add(bytes);
        let end = end.ok_or(OperationError::SizeTooLarge)?;
        self.check_blocks(&node.view, end)?;
        Ok((node.view, end))
    }

    /// Checks that each disk that shows the whole image still consists of blocks when this is the image's size.
    fn check_blocks(&self, resized: &DiskView, size: u64) -> Result<(), OperationError> {
        for (id, export) in self.all_exports() {
            let view = self
                .nodes
                .resolve(&export.options.node_name)
                .map(|node| node.view);
            let shows_all = view.is_ok_and(|view| view.is_whole() && Arc::ptr_eq(&view.node, &resized.node));
            if let (true, Some(block)) = (shows_all, export.options.logical_block_size)
                && !size.is_multiple_of(block.into())
            {
                return Err(OperationError::ResizeOfBlocks {
                    export: id.clone(),
                    size,
                    block,
                });
            }
        }
        Ok(())
    }
}
