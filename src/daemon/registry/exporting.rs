//! Adds exports, finds them, and lists them. Main thread only.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde::Serialize;

use super::error::OperationError;
use super::exports::{Export, Planned, plan, start_confined};
use super::nodes::Resolved;
use super::objects::IoThreadObject;
use super::sockets::Socket;
use super::waiting::Given;
use super::{Done, Registry};
use crate::daemon::options::{ExportOptions, IoThreadOptions, is_well_formed};
use crate::engine::BlockNode;
use crate::storage::LockError;
use crate::vhost_user::server::Server;

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
    /// Serves a node as a disk: at once, or from the start on. `socket` is the one that the address names, if a client has
    /// passed it. Calls `done` when the disk is served.
    pub fn export_add(&mut self, options: ExportOptions, socket: Option<OwnedFd>, done: Done) {
        let wanted = match socket {
            None => self.wanted_socket(&options),
            Some(_) => Ok(VecDeque::new()),
        };
        self.run_with(wanted, done, move |registry, given, done| {
            let inactive = registry.nodes.resolve(&options.node_name).is_ok_and(is_inactive);
            if options.allow_inactive || !inactive {
                return registry.export_active(options, socket, given, done);
            }
            let name = options.node_name.clone();
            registry.set_active_then(Some(&name), true, move |registry, activated| match activated {
                Ok(()) => registry.export_active(options, socket, given, done),
                Err(refusal) => done(Err(refusal)),
            });
        });
    }

    /// Serves a node that is active, or may stay inactive.
    fn export_active(&mut self, options: ExportOptions, socket: Option<OwnedFd>, given: Given, done: Done) {
        match self.plan_export(&options, socket, given.server) {
            Ok(planned) => self.start_export(options.id, planned, done),
            Err(refusal) => done(Err(refusal)),
        }
    }

    /// Checks a new export and reserves its place.
    fn plan_export(
        &mut self,
        options: &ExportOptions,
        passed: Option<OwnedFd>,
        made: Option<Server>,
    ) -> Result<Planned, OperationError> {
        let node = self.check_export(options)?;
        let path = self.nodes.path_down(&options.node_name);
        path.iter().try_for_each(|name| self.nodes.busy.check(name))?;
        let socket = match (made, passed) {
            (Some(server), _) => Socket::Ready(server),
            (None, Some(socket)) => {
                let server = Server::from_fd(socket);
                Socket::Ready(server.map_err(|error| OperationError::Descriptor(error.into()))?)
            }
            (None, None) => self.sockets.find(&options.addr)?,
        };
        let (mut export, planned) = plan(options, node, &self.objects, socket)?;
        if export.iothreads.is_empty() {
            export.iothreads.push(self.default_iothread());
        }
        self.nodes.busy.mark(&path, "block-export-add")?;
        self.exports.insert(options.id.clone(), export);
        Ok(planned)
    }

    /// Prepares a disk. Serves it if the registry is running.
    fn start_export(&mut self, id: String, planned: Planned, done: Done) {
        let Some(running) = &self.running else {
            let prepared = planned.wait_for_predecessor().and_then(Planned::prepare);
            return done(self.end_start(&id, prepared, |_, export, prepared| {
                export.prepared = Some(Box::new(prepared));
                Ok(())
            }));
        };
        let (sandbox, roster) = (running.sandbox.clone(), self.roster.clone());
        let iothreads = self.exports.get(&id).map(|export| export.iothreads.clone());
        let iothreads = iothreads.unwrap_or_default();
        let work = move || {
            let prepared = planned.prepare()?;
            let threads = iothreads
                .iter()
                .map(|iothread| start_confined(iothread, &sandbox, &roster))
                .collect::<Result<Vec<_>, _>>()?;
            let mut made = prepared.make(threads)?;
            made.activate()?;
            Ok(made)
        };
        self.run_aside(work, move |registry, made| {
            let own = id.clone();
            let served = registry.end_start(&id, made, move |registry, export, made| {
                registry.serve(&own, export, made)
            });
            done(served);
        });
    }

    /// Ends the reservation of an export, and completes the export with `complete`.
    fn end_start<T>(
        &mut self,
        id: &str,
        made: Result<T, OperationError>,
        complete: impl FnOnce(&mut Self, &mut Export, T) -> Result<(), OperationError>,
    ) -> Result<(), OperationError> {
        let Some(mut export) = self.exports.remove(id) else {
            return Err(OperationError::NoExport { id: id.to_owned() });
        };
        let path = self.nodes.path_down(&export.options.node_name);
        self.nodes.busy.clear(&path);
        export.starting = false;
        complete(self, &mut export, made?)?;
        self.exports.insert(id.to_owned(), export);
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
            .any(|leaving| leaving.id == id && !leaving.done.is_empty());
        if leaving || self.exports.contains_key(&id) {
            return Err(OperationError::ExportExists { id });
        }
        let node = self.nodes.resolve(&options.node_name)?;
        if options.writable && node.read_only {
            let name = options.node_name.clone();
            return Err(OperationError::ReadOnlyNode { name });
        }
        if let Some((by, other)) = self.rival(&node.view.node, options.writable) {
            let (name, by) = (options.node_name.clone(), by.to_owned());
            return Err(match other.writable {
                true => OperationError::WritableTwice { name, by },
                false => OperationError::ReadAlready { name, by },
            });
        }
        self.check_others(&node.view.node, options.writable)?;
        Ok(node)
    }

    /// Returns an export of this disk beside which no other may be, because one of the two writes.
    fn rival(&self, leaf: &Arc<BlockNode>, writable: bool) -> Option<(&String, &Export)> {
        let is_rival = |export: &Export| {
            let node = self.nodes.resolve(&export.options.node_name);
            (writable || export.writable) && node.is_ok_and(|node| Arc::ptr_eq(&node.view.node, leaf))
        };
        self.exports.iter().find(|(_, export)| is_rival(export))
    }

    /// Refuses an image that an export of another node uses, unless both only read.
    ///
    /// The lock cannot tell, because an export without a frontend releases it: its guest would lose the disk.
    fn check_others(&self, leaf: &Arc<BlockNode>, writable: bool) -> Result<(), LockError> {
        let conflicts = |export: &Export| {
            let node = self.nodes.resolve(&export.options.node_name);
            (writable || export.writable) && node.is_ok_and(|node| node.view.node.is_twin(leaf))
        };
        match self.exports.values().any(conflicts) {
            true => Err(LockError::InUse {
                path: leaf.path().to_owned(),
                how: LockError::OURSELVES,
                image: None,
            }),
            false => Ok(()),
        }
    }

    pub(super) fn default_iothread(&mut self) -> Arc<IoThreadObject> {
        let iothread = self
            .default_iothread
            .get_or_insert_with(|| IoThreadObject::new(DEFAULT_IOTHREAD, IoThreadOptions::default()));
        Arc::clone(iothread)
    }

    /// Returns the exported nodes with the ids of their exports, even if these are being removed.
    pub(super) fn exported(&self) -> BTreeMap<String, String> {
        self.all_exports()
            .map(|(id, export)| (export.options.node_name.clone(), id.clone()))
            .collect()
    }

    /// Returns the exports with their ids, even those that are being removed.
    pub(super) fn all_exports(&self) -> impl Iterator<Item = (&String, &Export)> {
        let leaving = self.leaving.iter().map(|leaving| (&leaving.id, &leaving.export));
        self.exports.iter().chain(leaving)
    }

    /// Returns the exports.
    pub fn query_exports(&self) -> Vec<ExportInfo> {
        let info = |id: &str, export: &Export, shutting_down| ExportInfo {
            id: id.to_owned(),
            kind: "vhost-user-blk",
            node_name: export.options.node_name.clone(),
            shutting_down,
        };
        let leaving = self.leaving.iter().filter(|leaving| !leaving.done.is_empty());
        let leaving = leaving.map(|leaving| info(&leaving.id, &leaving.export, true));
        let exports = self.exports.iter().filter(|(_, export)| !export.starting);
        let exports = exports.map(|(id, export)| info(id, export, false));
        exports.chain(leaving).collect()
    }
}

#[allow(clippy::needless_pass_by_value, reason = "for is_ok_and")]
fn is_inactive(node: Resolved) -> bool {
    !node.view.activity.get()
}
