//! The start: everything that needs rights comes before they are given up, and everything that makes threads after it,
//! because threads inherit what is left.
//!
//! 1. Take over descriptors, open images, make sockets, connect to the service manager.
//! 2. Confine the process.
//! 3. Create IOThreads, make disks, confine the IOThreads, lock the images.
//! 4. Serve: create the control threads, which are confined before they see the first byte of a frontend.
//!
//! Main thread.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;

use super::disks::{Disks, OnEnd};
use super::error::{Error, HandedError, SocketError};
use super::monitor::{MonitorSockets, MonitorThread};
use super::settings::{Image, Settings, SocketSource};
use crate::account::{Account, find_group};
use crate::affinity::pin_thread;
use crate::aio::{AioContext, Gone, IoThreadConfig};
use crate::blk::device::{BlkDevice, DeviceParams};
use crate::engine::{BlockNode, NodeControl, Plan};
use crate::iothread::{IoThread, IoThreadParams};
use crate::limits;
use crate::readiness::Readiness;
use crate::sandbox::{Keep, Sandbox, ThreadKind};
use crate::storage::foreign_format;
use crate::thread_pool::Spawner;
use crate::vhost_user::inherited;
use crate::vhost_user::path::SocketAccess;
use crate::vhost_user::server::Server;

/// What serves.
pub(super) struct Started {
    pub(super) disks: Disks,
    pub(super) iothreads: Vec<Arc<IoThread>>,
    pub(super) sandbox: Sandbox,
    pub(super) monitor: Option<MonitorThread>,
}

/// Starts to serve what `settings` describe. `handed` is the socket, if it was handed over.
///
/// # Errors
/// See [`enum@Error`]. Nothing is left behind.
pub(super) fn start(
    settings: &Settings,
    handed: Option<Server>,
    on_end: OnEnd,
    on_quit: impl Fn() + Send + 'static,
) -> Result<Started, Error> {
    check_limits(settings);
    let node = open_node(settings)?;
    check_use(settings, &node)?;
    announce_faults(settings);
    let account = find_account(settings)?;
    let server = match handed {
        Some(server) => server,
        None => bind(&settings.socket, account.as_ref())?,
    };
    let monitors = MonitorSockets::bind(&settings.monitors, account.as_ref())?;
    let readiness = Readiness::connect().map_err(Error::Readiness)?;
    let sockets: Vec<_> = server.path().into_iter().chain(monitors.paths()).collect();
    let keep = Keep {
        sockets: &sockets,
        account: account.as_ref(),
    };
    let sandbox = Sandbox::new(settings.sandbox, keep)?;
    let engine = node.plan(settings.engine)?.with_merging(settings.merging);
    let iothreads = spawn_iothreads(settings, &sandbox)?;
    let device = make_device(settings, &node, engine, &iothreads, &sandbox)?;
    let disk = device.state().name.clone();
    tracing::info!(
        disk, socket = server.name(), bytes = node.size(), queues = device.queues().len(),
        iothreads = settings.iothreads, %engine, "serving"
    );
    readiness.announce();
    let mut disks = Disks::new(sandbox.clone(), on_end);
    disks.add(&disk, device, server, iothreads.clone())?;
    let monitor = monitors.serve(&sandbox, on_quit).map_err(Error::Monitor)?;
    Ok(Started {
        disks,
        iothreads,
        sandbox,
        monitor,
    })
}

/// Makes the best of the limits that there are.
fn check_limits(settings: &Settings) {
    limits::survive_file_size_limit();
    let needed = limits::open_files_needed(settings.queue_iothreads.len(), settings.iothreads);
    match limits::raise_open_files() {
        Ok(limit) if limit >= needed => {}
        Ok(limit) => tracing::warn!(
            limit,
            needed,
            "the limit of open files is too low for so many queues: raise it (ulimit -n, LimitNOFILE=)"
        ),
        Err(error) => tracing::warn!(%error, "the limit of open files cannot be raised"),
    }
}

fn open_node(settings: &Settings) -> Result<Arc<BlockNode>, Error> {
    Ok(Arc::new(match &settings.image {
        Image::Null { size, latency: None } => BlockNode::null(*size),
        Image::Null {
            size,
            latency: Some(latency),
        } => BlockNode::null_aio(*size, *latency),
        Image::File { options, probe } => {
            // The source of a migration has looked. Here it would fill the page cache with what the source still
            // changes.
            if *probe && !settings.incoming {
                check_format(&options.path)?;
            }
            BlockNode::open(options)?
        }
    }))
}

/// Refuses an image that a guest would see the inside of.
fn check_format(path: &Path) -> Result<(), Error> {
    match foreign_format(path) {
        None => Ok(()),
        Some(format) => Err(Error::Format {
            path: path.to_owned(),
            format,
        }),
    }
}

/// Finds out early what cannot work, before there is a socket.
fn check_use(settings: &Settings, node: &BlockNode) -> Result<(), Error> {
    node.plan(settings.engine)?;
    if !settings.incoming {
        node.lock()?;
    }
    Ok(())
}

fn find_account(settings: &Settings) -> Result<Option<Account>, Error> {
    let Some(user) = &settings.user else {
        return Ok(None);
    };
    let account = Account::find(user).map_err(Error::User)?;
    account.check().map_err(Error::User)?;
    Ok(Some(account))
}

/// Takes over the socket that this process was started with, unless it is to make one. To be called before anything is
/// opened.
pub(super) fn handed_over(socket: &SocketSource) -> Result<Option<Server>, HandedError> {
    let server = |fd: OwnedFd| Server::from_fd(fd).map_err(SocketError::from);
    match socket {
        SocketSource::Path { .. } => Ok(None),
        SocketSource::Fd(fd) => {
            // SAFETY: nothing was opened yet, so it was handed over, and is given by number.
            let fd = unsafe { inherited::by_number(*fd) }.map_err(SocketError::from);
            fd.and_then(server).map(Some).map_err(HandedError::Number)
        }
        SocketSource::Manager { wants_access } => {
            // SAFETY: nothing was opened yet.
            let fd = unsafe { inherited::from_service_manager() };
            let fd = fd.map_err(|error| HandedError::Manager(error.into()))?;
            let fd = fd.ok_or_else(|| HandedError::None(what_the_environment_says()))?;
            if *wants_access {
                return Err(HandedError::Access);
            }
            server(fd).map(Some).map_err(HandedError::Manager)
        }
    }
}

/// Explains why there is no socket of a service manager, if there seems to be one.
fn what_the_environment_says() -> String {
    let Ok(number) = std::env::var("LISTEN_FDS") else {
        return String::new();
    };
    let pid = std::env::var("LISTEN_PID").unwrap_or_default();
    let own = std::process::id();
    format!(" (LISTEN_FDS={number} LISTEN_PID={pid} hands none to process {own})")
}

fn bind(socket: &SocketSource, account: Option<&Account>) -> Result<Server, Error> {
    let SocketSource::Path { path, mode, group } = socket else {
        unreachable!("a socket without a path was handed over");
    };
    let group = group
        .as_deref()
        .map(find_group)
        .transpose()
        .map_err(Error::Group)?;
    let access = SocketAccess {
        mode: mode.unwrap_or(SocketAccess::default().mode),
        owner: account.map(Account::uid),
        group: group.or(account.map(Account::gid)),
    };
    Ok(Server::bind(path, &access)?)
}

/// Makes the disk, with all that its IOThreads need, and confines them.
fn make_device(
    settings: &Settings,
    node: &Arc<BlockNode>,
    engine: Plan,
    iothreads: &[Arc<IoThread>],
    sandbox: &Sandbox,
) -> Result<BlkDevice, Error> {
    let params = device_params(settings, node, engine);
    let mut device = BlkDevice::new(Arc::clone(node), params, iothreads)?;
    // Before anything is executed: workers inherit the filters of their IOThread.
    for iothread in iothreads {
        confine(iothread, sandbox)?;
    }
    if !settings.incoming {
        device.activate(NodeControl::run)?;
    }
    Ok(device)
}

fn device_params(settings: &Settings, node: &BlockNode, engine: Plan) -> DeviceParams {
    DeviceParams {
        name: node.path().display().to_string(),
        engine,
        serial: settings.serial,
        num_queues: u16::try_from(settings.queue_iothreads.len()).unwrap_or(u16::MAX),
        queue_size: settings.queue_size,
        batch_notifications: settings.batch_notifications,
        trouble: settings.trouble,
        faults: settings.faults(),
        throttle: None,
        queue_iothreads: settings.queue_iothreads.clone(),
    }
}

/// Puts the sandbox over an IOThread, whose queues have all that they need by now.
fn confine(iothread: &IoThread, sandbox: &Sandbox) -> Result<(), Error> {
    let (sandbox, (reply, entered)) = (sandbox.clone(), mpsc::channel());
    let enter = move |_: &AioContext| {
        // The main thread waits for it.
        let _ = reply.send(sandbox.enter(ThreadKind::IoThread));
    };
    iothread.handle().run_on_context(enter)?;
    Ok(entered.recv().map_err(|_| Gone)??)
}

fn spawn_iothreads(settings: &Settings, sandbox: &Sandbox) -> Result<Vec<Arc<IoThread>>, Error> {
    let workers = sandbox.clone();
    let params = IoThreadParams {
        config: IoThreadConfig {
            poll_max: settings.poll_max,
        },
        thread_pool: settings.thread_pool,
        spawner: Spawner::new(move |name, body| workers.spawn(ThreadKind::Worker, name, body)),
    };
    let spawn = |n| Ok(Arc::new(IoThread::spawn(&format!("iothread{n}"), &params)?));
    let iothreads = (0..settings.iothreads)
        .map(spawn)
        .collect::<Result<Vec<_>, Error>>()?;
    for (iothread, cpus) in &settings.cpus {
        let thread = iothreads[usize::from(*iothread)].thread_id();
        pin_thread(thread, cpus).map_err(|source| Error::Pin {
            iothread: *iothread,
            cpus: cpus.clone(),
            source,
        })?;
    }
    Ok(iothreads)
}

/// Says, before anybody can connect, that faults are not to be taken for real ones.
fn announce_faults(settings: &Settings) {
    for rule in &settings.faults {
        tracing::warn!(%rule, "FAULT INJECTION IS ON: this disk will fail on purpose, and may lose data");
    }
}
