//! The registry on its way from one process to the next: its objects, nodes and exports. Main thread only.
//!
//! The operations that made them are not repeated, because images and sockets may have other names by now, and the new
//! process may not open them. What cannot be handed over is refused by name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, Engine};
use serde::{Deserialize, Serialize};

use super::Registry;
use super::error::OperationError;
use super::exports::plan;
use super::nodes::ParkedNode;
use super::objects::{Object, Objects};
use super::park_error::ParkError;
use super::secret_file::SecretSource;
use super::sockets::Socket;
use crate::daemon::options::{
    Address, AddressType, Driver, ExportOptions, ObjectOptions, ObjectType, SecretFormat,
};
use crate::daemon::settings::{Operation, Settings};
use crate::sandbox::Mode;
use crate::succession::Bundle;
use crate::vhost_user::server::Server;
use crate::vhost_user::{Heir, inheritance};

/// The registry of another process. Numbers of type `usize` are places in the [`Bundle`].
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(in crate::daemon) struct ParkedRegistry {
    objects: Vec<ObjectOptions>,
    /// In an order in which they can be made: a node comes after those below it.
    nodes: Vec<ParkedNode>,
    /// Number of nodes that were named by the process.
    anonymous: u64,
    exports: Vec<ParkedExport>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct ParkedExport {
    options: ExportOptions,
    display_name: Option<String>,
    socket: usize,
    socket_name: String,
    /// The path of the socket's file, if the process removes it at its end.
    socket_path: Option<PathBuf>,
}

type Result<T> = std::result::Result<T, ParkError>;

impl Registry {
    /// Describes everything for another process. Nothing changes.
    ///
    /// # Errors
    /// Something cannot be handed over, or not now.
    pub(in crate::daemon) fn describe(&self, format: u32, bundle: &mut Bundle) -> Result<ParkedRegistry> {
        if let Some(leaving) = self.leaving.first() {
            return Err(ParkError::Export(leaving.id.clone()));
        }
        if !self.names.waiting.is_empty() {
            return Err(ParkError::Waiting);
        }
        let (nodes, anonymous) = self.nodes.describe(format, bundle)?;
        let exports = self.exports.iter();
        Ok(ParkedRegistry {
            objects: self
                .objects
                .iter()
                .map(|(id, object)| describe(id, object))
                .collect(),
            nodes,
            anonymous,
            exports: exports
                .map(|(id, export)| self.describe_export(id, &export.options, bundle))
                .collect::<Result<_>>()?,
        })
    }

    /// Leaves everything to the other process, which has it now. This one ends.
    pub(in crate::daemon) fn leave(&self) {
        self.nodes.leaves().for_each(|leaf| leaf.close_at_end());
    }

    fn describe_export(
        &self,
        id: &str,
        options: &ExportOptions,
        bundle: &mut Bundle,
    ) -> Result<ParkedExport> {
        let changing = || ParkError::Export(id.to_owned());
        let disk = self.running.as_ref().and_then(|running| running.disks.get(id));
        let disk = disk.ok_or_else(changing)?;
        disk.handle().ok_or_else(changing)?;
        let export = self.exports.get(id).filter(|export| !export.starting);
        let export = export.ok_or_else(changing)?;
        for iothread in &export.iothreads {
            let named = self.objects.iothread(iothread.id());
            let is_default = self.default_iothread.as_ref();
            if !is_default.is_some_and(|default| Arc::ptr_eq(default, iothread))
                && !named.is_ok_and(|named| Arc::ptr_eq(&named, iothread))
            {
                return Err(ParkError::IoThread {
                    id: id.to_owned(),
                    iothread: iothread.id().to_owned(),
                });
            }
        }
        let socket_name = disk.socket().to_owned();
        Ok(ParkedExport {
            display_name: options.display_name.clone(),
            options: ExportOptions {
                addr: Address {
                    kind: AddressType::Fd,
                    path: None,
                    text: Some(socket_name.clone()),
                    mode: None,
                    group: None,
                },
                ..options.clone()
            },
            socket: bundle.add(disk.listener().ok_or_else(changing)?)?,
            socket_name,
            socket_path: disk.socket_file().map(Path::to_owned),
        })
    }

    /// Makes what another process has described, before [`start`](Self::start). Returns the ends through which the disks
    /// will get their sessions. A process with a sandbox connects only to servers and clusters that its own `settings`
    /// name.
    ///
    /// # Errors
    /// A part cannot be made here.
    pub(in crate::daemon) fn restore(
        &mut self,
        parked: ParkedRegistry,
        settings: &Settings,
        bundle: &mut Bundle,
    ) -> Result<BTreeMap<String, Heir>> {
        let failed = |what: String| {
            move |source| ParkError::Operation {
                what,
                source: Box::new(source),
            }
        };
        for mut object in parked.objects {
            let id = object.id.clone();
            // The old process may be in the hands of a guest: no name that it passes is opened.
            object.file = None;
            self.object_add(object)
                .map_err(failed(format!("object '{id}'")))?;
        }
        if parked.nodes.iter().any(ParkedNode::is_in_cluster) {
            let known = self.know_clusters(&settings.operations);
            known.map_err(failed("the options of this process".to_owned()))?;
        }
        self.nodes.confined = settings.sandbox != Mode::Off;
        self.nodes.set_anonymous(parked.anonymous);
        for node in parked.nodes {
            let name = node.name().to_owned();
            let files = node.take_files(bundle)?;
            self.nodes
                .restore(node, files, &self.objects)
                .map_err(failed(format!("node '{name}'")))?;
        }
        let mut heirs = BTreeMap::new();
        for export in parked.exports {
            let id = export.options.id.clone();
            let socket = bundle.take(export.socket)?;
            let (heir, inheritance) = inheritance()?;
            let server = Server::passed(socket, export.socket_name, export.socket_path.as_deref());
            let mut server = server.map_err(|source| ParkError::Server {
                id: id.clone(),
                source,
            })?;
            server.inherit(inheritance);
            let options = ExportOptions {
                display_name: export.display_name,
                ..export.options
            };
            self.restore_export(&options, server)
                .map_err(failed(format!("export '{id}'")))?;
            heirs.insert(id, heir);
        }
        Ok(heirs)
    }

    fn know_clusters(&self, operations: &[Operation]) -> std::result::Result<(), OperationError> {
        let mut objects = Objects::default();
        for operation in operations {
            match operation {
                Operation::Object(options) if options.qom_type == ObjectType::Secret => {
                    objects.add((**options).clone(), SecretSource::Any)?;
                }
                Operation::Blockdev(options) => {
                    let mut all = options.all().filter(|options| options.driver == Driver::Rbd);
                    all.try_for_each(|options| self.nodes.clusters.know(options, &objects.credentials()))?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn restore_export(
        &mut self,
        options: &ExportOptions,
        server: Server,
    ) -> std::result::Result<(), OperationError> {
        let node = self.check_export(options)?;
        let (mut export, planned) = plan(options, node, &self.objects, Socket::Ready(server))?;
        if export.iothreads.is_empty() {
            export.iothreads.push(self.default_iothread());
        }
        export.starting = false;
        export.prepared = Some(Box::new(planned.inherit()?));
        self.exports.insert(options.id.clone(), export);
        Ok(())
    }
}

fn describe(id: &str, object: &Object) -> ObjectOptions {
    match object {
        Object::IoThread(iothread) => {
            let options = iothread.options();
            ObjectOptions {
                poll_max_ns: Some(options.poll_max_ns),
                poll_grow: Some(options.poll_grow),
                poll_shrink: Some(options.poll_shrink),
                aio_max_batch: Some(options.aio_max_batch),
                thread_pool_min: Some(options.thread_pool_min),
                thread_pool_max: Some(options.thread_pool_max),
                cpu_affinity: options.cpu_affinity,
                ..ObjectOptions::new(ObjectType::IoThread, id)
            }
        }
        Object::Throttle(group) => ObjectOptions {
            limits: Some(group.limits()),
            ..ObjectOptions::new(ObjectType::ThrottleGroup, id)
        },
        Object::Secret(secret) => ObjectOptions {
            data: Some(BASE64_STANDARD.encode(&secret.0)),
            format: Some(SecretFormat::Base64),
            ..ObjectOptions::new(ObjectType::Secret, id)
        },
        Object::TlsCreds(creds) => ObjectOptions {
            dir: Some(creds.dir.clone()),
            endpoint: Some(creds.endpoint),
            verify_peer: Some(creds.verify_peer),
            ..ObjectOptions::new(ObjectType::TlsCredsX509, id)
        },
    }
}
