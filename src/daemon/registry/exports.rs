//! Exports: nodes that are served as disks over a socket, or will be.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};

use super::error::OperationError;
use super::export_params::{Params, QUEUES_MAX};
use super::nodes::Resolved;
use super::objects::{IoThreadObject, Objects};
use super::predecessor;
use super::sockets::Socket;
use crate::aio::{AioContext, Gone};
use crate::blk::device::{BlkDevice, DeviceParams};
use crate::daemon::options::ExportOptions;
use crate::daemon::roster::Roster;
use crate::engine::{BlockNode, DiskView, Faults, NodeControl};
use crate::iothread::IoThread;
use crate::sandbox::{Sandbox, ThreadKind};
use crate::vhost_user::server::Server;

/// An export.
#[derive(Debug)]
pub struct Export {
    /// A snapshot replaces `node_name` by the overlay's, so it always names the node that is served.
    pub(super) options: ExportOptions,
    /// The name of that node, for events of the disk's threads.
    pub(super) node_in_events: Arc<Mutex<String>>,
    pub(super) writable: bool,
    /// The IOThreads, which live at least as long as the export.
    pub(super) iothreads: Vec<Arc<IoThreadObject>>,
    /// The node may be inactive.
    pub(super) allow_inactive: bool,
    /// Adjacent requests are merged.
    pub(super) merging: bool,
    /// The guest's memory is registered with io_uring.
    pub(super) register_memory: bool,
    /// The export is being added, and cannot be seen yet.
    pub(super) starting: bool,
    /// The disk to serve, until it is served.
    pub(super) prepared: Option<Box<Prepared>>,
}

impl Export {
    /// Returns the name of the served node.
    pub fn node_name(&self) -> &str {
        &self.options.node_name
    }

    /// Returns whether frontends may write.
    pub fn is_writable(&self) -> bool {
        self.writable
    }
}

/// A disk to serve, before its image and socket have been tried.
#[derive(Debug)]
pub(super) struct Planned {
    node: Resolved,
    socket: Socket,
    params: Params,
}

/// A disk that is ready to be served, except for its threads.
#[derive(Debug)]
pub(super) struct Prepared {
    node: Resolved,
    server: Server,
    params: Params,
    /// The image's lock comes from a predecessor.
    inherited: bool,
}

/// Checks the options of an export.
pub(super) fn plan(
    options: &ExportOptions,
    node: Resolved,
    objects: &Objects,
    socket: Socket,
) -> Result<(Export, Planned), OperationError> {
    let writable = options.writable && !node.read_only;
    let (params, iothreads) = Params::of(options, &node, objects, writable)?;
    let export = Export {
        options: options.clone(),
        node_in_events: Arc::new(Mutex::new(options.node_name.clone())),
        writable,
        iothreads,
        allow_inactive: options.allow_inactive,
        merging: params.merging,
        register_memory: params.register_memory,
        starting: true,
        prepared: None,
    };
    Ok((export, Planned { node, socket, params }))
}

impl Planned {
    /// Waits at the start until the kernel has ended the I/O of a killed predecessor.
    pub(super) fn wait_for_predecessor(self) -> Result<Self, OperationError> {
        let view = &self.node.view;
        if view.activity.get() {
            predecessor::wait_for_end(view, !self.params.limits.read_only)?;
        }
        Ok(self)
    }

    /// Acquires everything that needs rights: checks that the disk can be used, and makes the socket. May wait for the
    /// file systems of both.
    pub(super) fn prepare(self) -> Result<Prepared, OperationError> {
        let Self { node, socket, params } = self;
        let view = &node.view;
        view.node.plan(node.engine)?;
        if view.activity.get() {
            // Only a check: the lock is released at once, and taken for good when nothing can fail any more.
            view.node.lock(view.lock_mode(!params.limits.read_only))?;
        }
        if view.activity.get() {
            warn_of_header(view);
        }
        params.announce_faults();
        let server = socket.open()?;
        Ok(Prepared {
            node,
            server,
            params,
            inherited: false,
        })
    }

    /// As [`prepare`](Self::prepare), for a disk that a predecessor serves: its image is in use, and its socket exists.
    pub(super) fn inherit(self) -> Result<Prepared, OperationError> {
        let Self { node, socket, params } = self;
        node.view.node.plan(node.engine)?;
        params.announce_faults();
        Ok(Prepared {
            node,
            server: socket.open()?,
            params,
            inherited: true,
        })
    }
}

/// Logs a warning if a raw disk begins like a qcow2 image. This is no error, because a guest can write such a header.
fn warn_of_header(view: &DiskView) {
    let (found, advice) = match &*view.node {
        BlockNode::File(file) => (
            matches!(file.has_qcow2_header(), Ok(true)),
            "driver=qcow2 serves the disk inside",
        ),
        node => (
            node.foreign_format() == Some("qcow2"),
            "let the server serve the disk inside (qemu-nbd -f qcow2), or convert the image",
        ),
    };
    if found && view.start == 0 {
        tracing::warn!(
            disk = view.node.path().display().to_string(),
            "the disk has a qcow2 header and is served as raw data: the guest gets the bytes of the image itself; {advice}"
        );
    }
}

/// A disk whose queues have been set up on their IOThreads, before it is served.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) device: BlkDevice,
    pub(super) server: Server,
    pub(super) iothreads: Vec<Arc<IoThread>>,
    active: bool,
    /// A predecessor serves it until it is taken over.
    inherited: bool,
}

impl Prepared {
    pub(super) fn num_queues(&self) -> usize {
        self.params.queue_iothreads.len()
    }

    pub(super) fn socket_path(&self) -> Option<PathBuf> {
        self.server.path().map(Path::to_owned)
    }

    /// Makes the disk and its resources on the IOThreads.
    pub(super) fn make(self, iothreads: Vec<Arc<IoThread>>) -> Result<Made, OperationError> {
        let Self {
            node,
            server,
            params,
            inherited,
        } = self;
        let engine = node
            .view
            .node
            .plan(node.engine)?
            .with_merging(params.merging)
            .with_max_batch(node.max_batch)
            .with_registered_memory(params.register_memory)?;
        let faults = (!params.faults.is_empty()).then(|| Arc::new(Faults::new(&params.faults)));
        let params = DeviceParams {
            name: params.name,
            limits: params.limits,
            engine,
            serial: params.serial,
            num_queues: u16::try_from(params.queue_iothreads.len()).unwrap_or(QUEUES_MAX),
            queue_size: params.queue_size,
            write_through: params.write_through,
            batch_notifications: params.batch_notifications,
            error_policy: params.error_policy,
            faults,
            throttle: node.group,
            queue_iothreads: params.queue_iothreads,
        };
        let active = node.view.activity.get() && !inherited;
        Ok(Made {
            device: BlkDevice::new(node.view, params, &iothreads)?,
            server,
            iothreads,
            active,
            inherited,
        })
    }
}

impl Made {
    /// Locks the image, unless another process uses it until the first ring starts.
    pub(super) fn activate(&mut self) -> Result<(), OperationError> {
        if self.active {
            self.device.activate(NodeControl::run)?;
        }
        Ok(())
    }

    pub(super) fn announce(&self) {
        if self.inherited {
            return;
        }
        let (device, view) = (&self.device, self.device.state().below.view());
        tracing::info!(
            disk = device.state().name, socket = self.server.name(), bytes = view.size(),
            queues = device.queues().len(), iothreads = self.iothreads.len(), engine = %device.engine(), "serving"
        );
    }
}

/// Returns the thread of an IOThread. If needed, starts and confines it, with the resources that later disks may need.
pub(super) fn start_confined(
    iothread: &Arc<IoThreadObject>,
    sandbox: &Sandbox,
    roster: &Roster,
) -> Result<Arc<IoThread>, OperationError> {
    let new = iothread.start(sandbox, roster)?;
    let thread = iothread.thread().ok_or(Gone)?;
    if new {
        thread.call(|resources| resources.prepare())?;
        confine(thread, sandbox)?;
    }
    Ok(Arc::clone(thread))
}

/// Confines an IOThread. Its disks must have everything that they need.
pub(super) fn confine(iothread: &IoThread, sandbox: &Sandbox) -> Result<(), OperationError> {
    let (sandbox, (reply, entered)) = (sandbox.clone(), mpsc::channel());
    let enter = move |_: &AioContext| {
        // Cannot fail: the main thread waits for the answer.
        let _ = reply.send(sandbox.enter(ThreadKind::IoThread));
    };
    iothread.handle().run_on_context(enter).map_err(|_| Gone)?;
    Ok(entered.recv().map_err(|_| Gone)??)
}
