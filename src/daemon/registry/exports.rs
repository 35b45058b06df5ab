//! Exports: nodes that are served as disks over a socket, or will be.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use super::error::{OperationError, within};
use super::nodes::Resolved;
use super::objects::{IoThreadObject, Objects};
use super::predecessor;
use super::sockets::Socket;
use crate::aio::{AioContext, Gone};
use crate::blk::device::{BlkDevice, DeviceParams};
use crate::blk::error_policy::ErrorPolicy;
use crate::blk::request::ID_LEN;
use crate::daemon::options::{ExportOptions, Mapping, NotifyOption, ValueError};
use crate::daemon::roster::Roster;
use crate::engine::{BlockNode, DiskView, FaultRule, Faults, NodeControl};
use crate::iothread::IoThread;
use crate::sandbox::{Sandbox, ThreadKind};
use crate::storage::Limits;
use crate::vhost_user::server::Server;

/// Maximum number of queues of a disk.
const QUEUES_MAX: u16 = 256;
/// Default number of entries of a queue, which is also the maximum.
const QUEUE_SIZE: u16 = 1024;
/// Maximum `io-timeout`: a day.
const TIMEOUT_MAX: u64 = 86_400;

/// An export.
#[derive(Debug)]
pub struct Export {
    /// The node is the one that is served now.
    pub(super) options: ExportOptions,
    pub(super) writable: bool,
    /// The IOThreads, which live at least as long as the export.
    pub(super) iothreads: Vec<Arc<IoThreadObject>>,
    /// The node may be inactive.
    pub(super) allow_inactive: bool,
    /// Adjacent requests are merged.
    pub(super) merging: bool,
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

/// The parameters of a disk.
#[derive(Debug)]
struct Params {
    name: String,
    limits: Limits,
    queue_iothreads: Vec<u16>,
    queue_size: u16,
    serial: [u8; ID_LEN],
    write_through: bool,
    batch_notifications: bool,
    merging: bool,
    error_policy: ErrorPolicy,
    faults: Vec<FaultRule>,
}

/// Checks the options of an export.
pub(super) fn plan(
    options: &ExportOptions,
    node: Resolved,
    objects: &Objects,
    socket: Socket,
) -> Result<(Export, Planned), OperationError> {
    let writable = options.writable && !node.read_only;
    let limits = limits(options, &node, writable)?;
    let num_queues = within("num-queues", options.num_queues.unwrap_or(1), 1..=QUEUES_MAX)?;
    let (iothreads, queue_iothreads) = assign(options, num_queues, objects)?;
    let params = params(options, limits, queue_iothreads)?;
    let export = Export {
        options: options.clone(),
        writable,
        iothreads,
        allow_inactive: options.allow_inactive,
        merging: params.merging,
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
        announce_faults(&params);
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
        announce_faults(&params);
        Ok(Prepared {
            node,
            server: socket.open()?,
            params,
            inherited: true,
        })
    }
}

/// Logs a warning if a raw disk begins like a qcow2 image. It may be right: a guest can write such a header.
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

/// Returns the limits of the disk.
fn limits(options: &ExportOptions, node: &Resolved, writable: bool) -> Result<Limits, OperationError> {
    let limits = node.view.limits_for(options.logical_block_size, !writable)?;
    let (name, size) = (|| options.node_name.clone(), node.view.size());
    let block = limits.logical_block_size;
    if node.is_fixed && !size.is_multiple_of(block.into()) {
        let name = name();
        return Err(OperationError::PartOfBlocks { name, size, block });
    }
    match size < block.into() {
        true => Err(OperationError::NoBlock { name: name() }),
        false => Ok(limits),
    }
}

/// Returns the IOThreads of an export, and each queue's index among them.
fn assign(
    options: &ExportOptions,
    queues: u16,
    objects: &Objects,
) -> Result<(Vec<Arc<IoThreadObject>>, Vec<u16>), OperationError> {
    if let Some(mapping) = &options.iothread_vq_mapping {
        let iothreads = mapping.iter().map(|entry| objects.iothread(&entry.iothread));
        let iothreads = iothreads.collect::<Result<Vec<_>, _>>()?;
        let owners = owners(mapping, queues).map_err(OperationError::Mapping)?;
        return Ok((iothreads, owners));
    }
    let ids = &options.iothread.0;
    let iothreads = ids
        .iter()
        .map(|id| objects.iothread(id))
        .collect::<Result<Vec<_>, _>>()?;
    let count = u16::try_from(iothreads.len().max(1)).unwrap_or(u16::MAX);
    Ok((iothreads, (0..queues).map(|queue| queue % count).collect()))
}

/// Returns the index in `mapping` of each queue's IOThread.
fn owners(mapping: &[Mapping], queues: u16) -> Result<Vec<u16>, String> {
    let count = u16::try_from(mapping.len()).map_err(|_| "too many IOThreads".to_owned())?;
    if count == 0 {
        return Err("an IOThread is missing".to_owned());
    }
    if mapping.iter().all(|entry| entry.vqs.is_none()) {
        return Ok((0..queues).map(|queue| queue % count).collect());
    }
    let mut owners = vec![None; queues.into()];
    for (position, entry) in (0..count).zip(mapping) {
        let vqs = entry.vqs.as_ref();
        for queue in vqs.ok_or("either all IOThreads have 'vqs' or none")? {
            let owner = owners.get_mut(usize::from(*queue)).ok_or_else(|| {
                format!("queue {queue} does not exist: they count from 0, and num-queues is {queues}")
            })?;
            if owner.replace(position).is_some() {
                return Err(format!("queue {queue} is named twice"));
            }
        }
    }
    match owners.iter().position(Option::is_none) {
        Some(queue) => Err(format!(
            "queue {queue} has no IOThread: each of the {queues} queues needs one"
        )),
        None => Ok(owners.into_iter().flatten().collect()),
    }
}

fn params(
    options: &ExportOptions,
    limits: Limits,
    queue_iothreads: Vec<u16>,
) -> Result<Params, OperationError> {
    let io_timeout = within("io-timeout", options.io_timeout.unwrap_or(0), 0..=TIMEOUT_MAX)?;
    Ok(Params {
        name: options.display_name.clone().unwrap_or_else(|| options.id.clone()),
        limits,
        queue_iothreads,
        queue_size: queue_size(options.queue_size)?,
        serial: serial(options.serial.as_deref().unwrap_or_default())?,
        write_through: options.writethrough,
        batch_notifications: options.notify.unwrap_or_default() == NotifyOption::Batch,
        merging: options.request_merging.unwrap_or(true),
        error_policy: ErrorPolicy {
            read_errors: options.rerror.unwrap_or_default(),
            write_errors: options.werror.unwrap_or_default(),
            io_timeout: Some(Duration::from_secs(io_timeout)).filter(|limit| !limit.is_zero()),
        },
        faults: options.inject.clone(),
    })
}

fn queue_size(given: Option<u16>) -> Result<u16, OperationError> {
    let size = given.unwrap_or(QUEUE_SIZE);
    match size.is_power_of_two() && (4..=QUEUE_SIZE).contains(&size) {
        true => Ok(size),
        false => Err(ValueError::Type {
            path: "queue-size".to_owned(),
            expected: format!("a power of two from 4 to {QUEUE_SIZE}"),
        }
        .into()),
    }
}

fn serial(text: &str) -> Result<[u8; ID_LEN], OperationError> {
    let mut serial = [0; ID_LEN];
    match serial.get_mut(..text.len()) {
        Some(room) if !text.contains('\0') => room.copy_from_slice(text.as_bytes()),
        _ => {
            return Err(ValueError::Type {
                path: "serial".to_owned(),
                expected: format!("at most {ID_LEN} bytes without NUL"),
            }
            .into());
        }
    }
    Ok(serial)
}

/// Warns, before anyone can connect, that faults are injected.
fn announce_faults(params: &Params) {
    for rule in &params.faults {
        tracing::warn!(disk = params.name, %rule, "FAULT INJECTION IS ON: this disk will fail on purpose, and may lose data");
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
            .with_max_batch(node.max_batch);
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
