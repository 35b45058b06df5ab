//! The registry of objects, nodes and exports, and the operations on it. The command line, configuration files and QMP
//! all ask for the same operations, in the same words.
//!
//! Before [`start`](Registry::start), operations only acquire what needs rights (images, sockets), and create no
//! threads. Afterwards they take effect at once. Main thread only; other threads send calls through a
//! [`Handle`](super::handle::Handle).

mod blockdev;
mod busy;
mod callbacks;
mod error;
mod export_params;
mod exporting;
mod exports;
mod iothread_property;
mod jobs;
mod names;
mod nodes;
mod objects;
mod park_error;
mod predecessor;
mod reopen;
mod secret_file;
mod serving;
mod set_active;
mod snapshot;
mod sockets;
mod succession;
mod waiting;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use callbacks::OnDiskNotice;
pub use callbacks::{DiskListener, Done, Notice, OnNotice};
pub use error::{OperationError, SocketError};
pub use exporting::ExportInfo;
pub use exports::Export;
use exports::start_confined;
pub use iothread_property::IoThreadProperty;
pub use nodes::Node;
use nodes::Nodes;
use objects::Objects;
pub(super) use objects::tls_creds;
pub use objects::{IoThreadObject, Object};
use secret_file::SecretSource;
pub use serving::RemoveMode;
use sockets::Sockets;
pub(super) use succession::ParkedRegistry;
use waiting::Names;

use super::disks::{Disk, Disks};
use super::options::ObjectOptions;
use super::roster::Roster;
use crate::account::Account;
use crate::engine::{BlockNode, DiskView};
use crate::nbd::Line;
use crate::qmp::FdSets;
use crate::sandbox::{Mode, Sandbox};

/// A call that another thread wants the main thread to make.
pub(in crate::daemon) type Call = Box<dyn FnOnce(&mut Registry) + Send>;

/// The objects, nodes and exports of this process.
pub struct Registry {
    objects: Objects,
    nodes: Nodes,
    exports: BTreeMap<String, Export>,
    sockets: Sockets,
    names: Names<Self>,
    /// The IOThread for exports that name none.
    default_iothread: Option<Arc<IoThreadObject>>,
    running: Option<Running>,
    leaving: Vec<Leaving>,
    /// A removed image that has lost writes.
    lost: Option<PathBuf>,
    /// Reaches the main thread, which has this registry.
    come_back: Option<Arc<dyn Fn(Call) + Send + Sync>>,
    roster: Roster,
    on_notice: OnNotice,
    on_disk_notice: OnDiskNotice,
}

struct Running {
    disks: Disks,
    sandbox: Sandbox,
}

/// An export that is being removed.
struct Leaving {
    id: String,
    export: Export,
    disk: Disk,
    /// The disk's control thread has ended.
    ended: bool,
    /// The callers that wait, until they have their answers.
    done: Vec<Done>,
    deadline: Option<Instant>,
}

impl Registry {
    /// Makes an empty registry. Sockets will belong to `account`, the user to switch to.
    pub fn new(account: Option<Account>) -> Self {
        Self {
            objects: Objects::default(),
            nodes: Nodes::default(),
            exports: BTreeMap::new(),
            sockets: Sockets {
                account,
                ..Sockets::default()
            },
            names: Names::new(),
            default_iothread: None,
            running: None,
            leaving: Vec::new(),
            lost: None,
            come_back: None,
            roster: Roster::default(),
            on_notice: Box::new(|_| ()),
            on_disk_notice: OnDiskNotice::default(),
        }
    }

    /// Makes disks call `on_notice` on any thread with the export's id, the name of its node, and the event. Must be
    /// called once.
    pub fn set_on_disk_notice(&self, on_notice: DiskListener) {
        let _ = self.on_disk_notice.set(on_notice);
    }

    /// Calls `on_notice` with each notice from now on.
    pub fn set_on_notice(&mut self, on_notice: OnNotice) {
        self.on_notice = on_notice;
    }

    /// Returns the statistics of the disks and IOThreads, for other threads.
    pub(super) fn roster(&self) -> &Roster {
        &self.roster
    }

    /// Hands over the descriptors that exports may name by number, and the one from the service manager.
    pub fn hand_over(&mut self, descriptors: Vec<(String, OwnedFd)>, activation: Option<OwnedFd>) {
        self.sockets.descriptors = descriptors;
        self.sockets.activation = activation;
    }

    /// Uses these sets for images whose path is `/dev/fdset/N`.
    pub fn set_fdsets(&mut self, fdsets: FdSets) {
        self.nodes.fdsets = fdsets;
    }

    /// Connects to NBD servers over these lines.
    pub(super) fn set_lines(&mut self, lines: Vec<Arc<Line>>) {
        self.nodes.lines.extend(lines);
    }

    /// Confines the threads of librbd as `mode` says.
    pub(super) fn confine_ceph(&self, mode: Mode) {
        self.nodes.clusters.confine(mode, self.sockets.account.clone());
    }

    /// Makes an object.
    ///
    /// # Errors
    /// The options are wrong, the id is taken, or an IOThread cannot be started.
    pub fn object_add(&mut self, options: ObjectOptions) -> Result<(), OperationError> {
        let id = options.id.clone();
        let secrets = match self.running {
            None => SecretSource::Any,
            Some(_) => SecretSource::RegularFile,
        };
        let Object::IoThread(iothread) = self.objects.add(options, secrets)?.clone() else {
            return Ok(());
        };
        let started = match &self.running {
            None => Ok(()),
            Some(running) => start_confined(&iothread, &running.sandbox, &self.roster).map(drop),
        };
        started.inspect_err(|_| {
            self.objects.remove(&id);
        })
    }

    /// Removes an object. Exports keep their IOThreads.
    ///
    /// # Errors
    /// There is no such object, or a node uses it.
    pub fn object_del(&mut self, id: &str) -> Result<(), OperationError> {
        let id = || id.to_owned();
        match self.objects.get(&id()) {
            None => return Err(OperationError::NoObject { id: id() }),
            Some(Object::Throttle(group)) => {
                let mut groups = self.nodes.iter().filter_map(|(_, node)| node.group());
                if groups.any(|used| Arc::ptr_eq(used, group)) {
                    return Err(OperationError::ObjectInUse { id: id() });
                }
            }
            Some(Object::TlsCreds(_) | Object::Secret(_)) => {
                let mut used = self.nodes.iter().flat_map(|(_, node)| {
                    let options = node.options();
                    [&options.tls_creds, &options.key_secret].into_iter().flatten()
                });
                if used.any(|used| *used == id()) {
                    return Err(OperationError::ObjectInUse { id: id() });
                }
            }
            Some(Object::IoThread(_)) => {}
        }
        self.objects.remove(&id());
        Ok(())
    }

    /// Returns the places that images come from, with files that were opened for this operation.
    fn images(&self, opened: Vec<waiting::OpenedFile>) -> nodes::Images {
        self.nodes.images(opened, self.objects.credentials())
    }

    /// Returns an object.
    pub fn object(&self, id: &str) -> Option<&Object> {
        self.objects.get(id)
    }

    /// Returns all objects with their ids.
    pub fn objects(&self) -> impl Iterator<Item = (&str, &Object)> {
        self.objects.iter()
    }

    /// Returns the IOThread of exports that name none, if there are any. It is no object.
    pub(in crate::daemon) fn unnamed_iothread(&self) -> Option<&IoThreadObject> {
        let iothread = self.default_iothread.as_ref()?;
        let serves = |export: &Export| export.iothreads.iter().any(|own| Arc::ptr_eq(own, iothread));
        let mut exports = self.exports.iter();
        exports.any(|(_, export)| serves(export)).then_some(&**iothread)
    }

    /// Returns all nodes with their names.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter()
    }

    /// Returns the disk that an export of a node would serve.
    ///
    /// # Errors
    /// There is no such node.
    pub fn view_of(&self, name: &str) -> Result<DiskView, OperationError> {
        Ok(self.nodes.resolve(name)?.view)
    }

    /// Returns the name of a node's image, in QEMU's words.
    pub fn filename_of(&self, name: &str) -> String {
        self.nodes.filename(name)
    }

    /// Returns the number of layers below a node, in QEMU's count.
    pub fn backing_depth(&self, name: &str) -> usize {
        self.nodes.backing_depth(name)
    }

    /// Returns whether nothing is served.
    pub fn is_idle(&self) -> bool {
        self.exports.is_empty() && self.leaving.is_empty()
    }

    /// Returns the number of descriptors that the exports may need: three eventfds per queue, an event loop and an
    /// engine per IOThread, some regions of guest memory, and a few more.
    pub(super) fn open_files_needed(&self) -> u64 {
        let prepared = self
            .exports
            .values()
            .filter_map(|export| export.prepared.as_ref());
        let queues: usize = prepared.map(|prepared| prepared.num_queues()).sum();
        let iothreads = self.objects.iothreads().count() + 1;
        3 * queues as u64 + 8 * iothreads as u64 + 16 * self.exports.len() as u64 + 48
    }

    /// Returns the paths of the sockets that this process must remove.
    pub(super) fn socket_paths(&self) -> Vec<PathBuf> {
        let prepared = self
            .exports
            .values()
            .filter_map(|export| export.prepared.as_ref());
        prepared.filter_map(|prepared| prepared.socket_path()).collect()
    }

    /// Returns the path of an image that has lost writes. It may have been removed since.
    pub(super) fn lost_writes(&self) -> Option<PathBuf> {
        let lost = lost_by(self.nodes.leaves());
        lost.or_else(|| self.lost.clone())
    }
}

/// Returns the path of the first disk whose last flush has failed.
fn lost_by<'a>(mut leaves: impl Iterator<Item = &'a Arc<BlockNode>>) -> Option<PathBuf> {
    let lost = leaves.find(|leaf| leaf.last_flush_failed());
    lost.map(|leaf| leaf.path().to_owned())
}
