//! Adds exports, finds them, and lists them. Main thread only.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde::Serialize;

use super::Registry;
use super::error::OperationError;
use super::exports::{Export, prepare};
use super::nodes::Resolved;
use super::objects::IoThreadObject;
use super::predecessor;
use crate::daemon::options::{ExportOptions, IoThreadOptions, is_well_formed};
use crate::engine::BlockNode;
use crate::storage::LockError;

/// The id of the IOThread for exports that name none.
const DEFAULT_IOTHREAD: &str = "iothread";

/// A description of an export, for users.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the words of QEMU")]
pub struct ExportInfo {
    pub id: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub node_name: String,
    pub shutting_down: bool,
}

impl Registry {
    /// Serves a node as a disk: at once, or from the start on.
    ///
    /// # Errors
    /// The options are wrong, the node is in use, or the socket cannot be made.
    pub fn export_add(&mut self, options: &ExportOptions) -> Result<(), OperationError> {
        let node = self.check_export(options)?;
        let id = options.id.clone();
        if self.running.is_none() && node.view.activity.get() {
            predecessor::wait_for_end(&node.view, options.writable && !node.read_only)?;
        }
        let mut export = prepare(options, node, &self.objects, &mut self.sockets)?;
        if export.iothreads.is_empty() {
            export.iothreads.push(self.default_iothread());
        }
        if self.running.is_some() {
            self.serve(&id, &mut export)?;
        }
        self.exports.insert(id, export);
        Ok(())
    }

    /// Checks whether an export with these options may be added, and returns the disk that it would serve.
    pub(super) fn check_export(&self, options: &ExportOptions) -> Result<Resolved, OperationError> {
        let id = options.id.clone();
        if !is_well_formed(&id) {
            return Err(OperationError::BadId { id });
        }
        let leaving = self
            .leaving
            .iter()
            .any(|leaving| leaving.id == id && leaving.done.is_some());
        if leaving || self.exports.contains_key(&id) {
            return Err(OperationError::ExportExists { id });
        }
        let node = self.nodes.resolve(&options.node_name)?;
        if options.writable && node.read_only {
            let name = options.node_name.clone();
            return Err(OperationError::ReadOnlyNode { name });
        }
        if options.writable
            && let Some(by) = self.writer_of(&node.view.node)
        {
            return Err(OperationError::WritableTwice {
                name: options.node_name.clone(),
                by: by.to_owned(),
            });
        }
        self.check_others(&node.view.node, options.writable)?;
        Ok(node)
    }

    /// Serves a node like [`export_add`](Self::export_add), on `socket`, which the address names.
    ///
    /// # Errors
    /// As [`export_add`](Self::export_add), or the socket neither listens nor is connected.
    pub fn export_add_on(&mut self, options: &ExportOptions, socket: OwnedFd) -> Result<(), OperationError> {
        let name = options.addr.text.clone().unwrap_or_default();
        self.sockets.descriptors.push((name.clone(), socket));
        let added = self.export_add(options);
        self.sockets.descriptors.retain(|(known, _)| *known != name);
        added
    }

    /// Returns the id of the export that may write to this disk.
    fn writer_of(&self, leaf: &Arc<BlockNode>) -> Option<&str> {
        let same = |export: &Export| {
            let node = self.nodes.resolve(&export.node_name);
            export.writable && node.is_ok_and(|node| Arc::ptr_eq(&node.view.node, leaf))
        };
        let mut exports = self.exports.iter();
        exports.find_map(|(id, export)| same(export).then_some(id.as_str()))
    }

    /// Refuses an image that an export of another node uses, unless both only read.
    ///
    /// The lock cannot tell, because an export without a frontend releases it: its guest would lose the disk.
    fn check_others(&self, leaf: &Arc<BlockNode>, writable: bool) -> Result<(), LockError> {
        let conflicts = |export: &Export| {
            let node = self.nodes.resolve(&export.node_name);
            (writable || export.writable) && node.is_ok_and(|node| node.view.node.is_twin(leaf))
        };
        match self.exports.values().any(conflicts) {
            true => Err(LockError::InUse {
                path: leaf.path().to_owned(),
                how: LockError::OURSELVES,
            }),
            false => Ok(()),
        }
    }

    fn default_iothread(&mut self) -> Arc<IoThreadObject> {
        let iothread = self
            .default_iothread
            .get_or_insert_with(|| IoThreadObject::new(DEFAULT_IOTHREAD, IoThreadOptions::default()));
        Arc::clone(iothread)
    }

    /// Returns the exported nodes with the ids of their exports, even if these are being removed.
    pub(super) fn exported(&self) -> BTreeMap<String, String> {
        let leaving = self.leaving.iter().map(|leaving| (&leaving.id, &leaving.export));
        let all = self.exports.iter().chain(leaving);
        all.map(|(id, export)| (export.node_name.clone(), id.clone()))
            .collect()
    }

    /// Returns the exports.
    pub fn query_exports(&self) -> Vec<ExportInfo> {
        let info = |id: &str, export: &Export, shutting_down| ExportInfo {
            id: id.to_owned(),
            kind: "vhost-user-blk",
            node_name: export.node_name.clone(),
            shutting_down,
        };
        let leaving = self.leaving.iter().filter(|leaving| leaving.done.is_some());
        let leaving = leaving.map(|leaving| info(&leaving.id, &leaving.export, true));
        let exports = self.exports.iter().map(|(id, export)| info(id, export, false));
        exports.chain(leaving).collect()
    }
}
