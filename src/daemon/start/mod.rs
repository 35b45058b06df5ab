//! The start of the daemon. Steps that need rights come before the rights are given up. Threads are created afterwards,
//! because they inherit the remaining rights.
//!
//! 1. Take over descriptors, open images, make sockets, connect to the service manager.
//! 2. Confine the process.
//! 3. Create IOThreads, make disks, confine the IOThreads, lock the images.
//! 4. Serve: create the control threads, which are confined before they see the first byte of a frontend.
//!
//! Main thread.

mod handed;
mod sockets;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;

use super::disks::OnEnd;
use super::error::Error;
use super::handle::Handle;
use super::metrics::MetricsThread;
use super::monitor::MonitorThread;
use super::options::{Driver, ObjectType};
use super::pid_file::PidFile;
use super::registry::{Done, OperationError, Registry, tls_creds};
use super::settings::{Operation, Settings};
use super::succession::{HandOverSocket, Left, Successor, TakeOverError};
use crate::account::Account;
use crate::connector;
use crate::lifeline;
use crate::limits;
use crate::memory;
use crate::nbd::Line;
use crate::opener::Opener;
use crate::sandbox::{Keep, Mode, Sandbox, ThreadKind};
use crate::service_manager::ServiceManager;
use crate::watchdog;
pub(super) use handed::{Handed, handed_over};
use sockets::{Sockets, make_sockets, rewrite};

/// The running daemon.
pub(super) struct Started {
    pub(super) registry: Registry,
    pub(super) sandbox: Sandbox,
    pub(super) monitor: Option<MonitorThread>,
    pub(super) metrics: Option<MetricsThread>,
    pub(super) service_manager: ServiceManager,
    /// The pid file, which is removed at the end.
    pub(super) pid_file: Option<PidFile>,
    /// The socket on which another process may ask to take over.
    pub(super) hand_over: Option<HandOverSocket>,
    /// The process that this one has taken over from, if it is alive.
    pub(super) old: Option<Left>,
}

/// Makes what `settings` describe, confines the process, and serves.
///
/// # Errors
/// See [`enum@Error`]. Everything that was made is removed again.
pub(super) fn start(
    settings: &Settings,
    handed: Handed,
    on_end: OnEnd,
    handle: Handle,
) -> Result<Started, Error> {
    limits::survive_file_size_limit();
    let limit = limits::raise_open_files();
    let account = find_account(settings)?;
    let mut successor = ask_predecessor(settings)?;
    let mut registry = make_registry(settings, handed, account.as_ref(), successor.as_mut())?;
    check_open_files(limit, &registry);
    let is_idle = Registry::is_idle(&registry) && successor.is_none();
    if is_idle && settings.monitors.is_empty() {
        tracing::warn!("nothing is served: there is no --export, and no --monitor to add one");
    }
    let sockets = make_sockets(settings, account.as_ref(), successor.as_mut())?;
    let managed = !sockets.monitors.is_empty();
    let sandbox = make_sandbox(settings, account.as_ref(), &registry, &sockets)?;
    start_watchdog(&sandbox)?;
    Registry::start(&mut registry, &sandbox, managed, on_end).map_err(Error::Serve)?;
    let Sockets {
        monitors,
        metrics,
        mut pid_file,
        service_manager,
        mut hand_over,
    } = sockets;
    let mut old = None;
    if let Some(successor) = successor {
        old = successor.take_over()?;
        rewrite(pid_file.as_mut());
    }
    let metrics = metrics
        .serve(&sandbox, registry.roster())
        .map_err(Error::Metrics)?;
    let way_back = handle.clone();
    registry.set_way_back(move |call| way_back.call(call));
    let monitor = monitors
        .serve(&sandbox, handle.clone(), &mut registry)
        .map_err(Error::Monitor)?;
    if let Some(socket) = &mut hand_over {
        socket.serve(&sandbox, handle).map_err(Error::HandOver)?;
    }
    Ok(Started {
        registry,
        sandbox,
        monitor,
        metrics,
        service_manager,
        pid_file,
        hand_over,
        old,
    })
}

/// Makes the objects, nodes and exports, or restores those of a predecessor, and the helper processes that they need.
fn make_registry(
    settings: &Settings,
    handed: Handed,
    account: Option<&Account>,
    successor: Option<&mut Successor>,
) -> Result<Registry, Error> {
    let opener = start_opener(settings, account)?;
    if settings.hand_over.is_some() || successor.is_some() {
        lifeline::make().map_err(Error::HandOver)?;
    }
    // They outlive this process until servers have ended its requests.
    let lines = start_connectors(settings, account)?;
    let mut registry = Registry::new(account.cloned());
    registry.set_lines(lines);
    registry.confine_ceph(settings.sandbox);
    registry.set_opener(opener, settings.sandbox_hint);
    registry.hand_over(handed.descriptors, handed.activation);
    if let Some(successor) = successor {
        successor.restore(&mut registry, settings)?;
        return Ok(registry);
    }
    for (number, operation) in settings.operations.iter().enumerate() {
        apply(&mut registry, operation.clone()).map_err(|source| Error::Operation {
            verb: operation.verb(),
            number,
            source: Box::new(source),
        })?;
    }
    Ok(registry)
}

/// Prepares the sandbox, which leaves the right to remove the sockets and files that this process has made.
fn make_sandbox(
    settings: &Settings,
    account: Option<&Account>,
    registry: &Registry,
    sockets: &Sockets,
) -> Result<Sandbox, Error> {
    let paths = registry.socket_paths();
    let files: Vec<&Path> = paths
        .iter()
        .map(PathBuf::as_path)
        .chain(sockets.monitors.paths())
        .chain(sockets.metrics.paths())
        .chain(sockets.pid_file.as_ref().map(PidFile::path))
        .chain(sockets.hand_over.as_ref().map(HandOverSocket::path))
        .collect();
    let keep = Keep {
        sockets: &files,
        account,
    };
    Ok(Sandbox::new(settings.sandbox, keep)?)
}

/// Asks the process to take over from, before anything is made. If that has been killed, this one makes what its options
/// describe, as a service that is started again.
fn ask_predecessor(settings: &Settings) -> Result<Option<Successor>, Error> {
    let Some(path) = &settings.take_over else {
        return Ok(None);
    };
    memory::keep_files();
    let successor = Successor::ask(path, settings.fail_point)?;
    if successor.is_none() {
        if settings.operations.is_empty() {
            return Err(TakeOverError::killed(path).into());
        }
        tracing::warn!(
            "the old process was killed before it had described its disks: serving those of the options"
        );
    }
    Ok(successor)
}

fn apply(registry: &mut Registry, operation: Operation) -> Result<(), OperationError> {
    match operation {
        Operation::Object(options) => registry.object_add(*options),
        Operation::Blockdev(options) => at_once(|done| registry.blockdev_add(*options, done)),
        Operation::Export(options) => at_once(|done| registry.export_add(*options, None, done)),
    }
}

/// Runs an operation that ends before it returns, because the registry does not run yet.
fn at_once(run: impl FnOnce(Done)) -> Result<(), OperationError> {
    let (reply, outcome) = mpsc::channel();
    run(Box::new(move |outcome| drop(reply.send(outcome))));
    outcome.recv().expect("operations end at once before the start")
}

/// Creates the thread that ends writes to full eventfds, and waits until it is confined.
fn start_watchdog(sandbox: &Sandbox) -> Result<(), Error> {
    let (sandbox, (reply, confined)) = (sandbox.clone(), mpsc::channel());
    let body = move || {
        let entered = sandbox.enter(ThreadKind::Watchdog);
        let failed = entered.is_err();
        // Cannot fail: the creator waits for the answer.
        let _ = reply.send(entered);
        if !failed {
            watchdog::run();
        }
    };
    let thread = thread::Builder::new().name("watchdog".to_owned()).spawn(body);
    thread.map_err(Error::Watchdog)?;
    confined.recv().expect("the thread answers")?;
    Ok(())
}

/// Starts the process that opens names for disks that are added later, before there are files that it could inherit.
fn start_opener(settings: &Settings, account: Option<&Account>) -> Result<Option<Opener>, Error> {
    let directories = &settings.sandbox_paths;
    if directories.is_empty() || settings.sandbox == Mode::Off {
        return Ok(None);
    }
    Ok(Some(Opener::start(directories, settings.sandbox, account)?))
}

/// Starts the processes that connect to NBD servers, before there are files that they could inherit.
fn start_connectors(settings: &Settings, account: Option<&Account>) -> Result<Vec<Arc<Line>>, Error> {
    let mut lines: Vec<Arc<Line>> = Vec::new();
    let mut credentials = BTreeMap::new();
    for operation in &settings.operations {
        let options = match operation {
            Operation::Object(options) => {
                if options.qom_type == ObjectType::TlsCredsX509
                    && let Ok(creds) = tls_creds(options)
                {
                    credentials.insert(options.id.as_str(), creds);
                }
                continue;
            }
            Operation::Blockdev(options) => options,
            Operation::Export(_) => continue,
        };
        for options in options.all().filter(|options| options.driver == Driver::Nbd) {
            let creds = options.tls_creds.as_deref();
            let tls = creds.and_then(|id| credentials.get(id));
            // The operation itself reports a wrong address, and credentials that are missing.
            let Ok(remote) = options.remote(tls) else { continue };
            if creds.is_some() == tls.is_some() && lines.iter().all(|line| *line.remote() != remote) {
                let line = connector::start_process(&remote, settings.sandbox, account)?;
                lines.push(line);
            }
        }
    }
    Ok(lines)
}

/// Warns if the limit of open files is too low.
fn check_open_files(limit: std::io::Result<u64>, registry: &Registry) {
    let needed = registry.open_files_needed();
    match limit {
        Ok(limit) if limit >= needed => {}
        Ok(limit) => tracing::warn!(
            limit,
            needed,
            "the limit of open files is too low for so many queues: raise it (ulimit -n, LimitNOFILE=)"
        ),
        Err(error) => tracing::warn!(%error, "the limit of open files cannot be raised"),
    }
}

fn find_account(settings: &Settings) -> Result<Option<Account>, Error> {
    let Some(user) = &settings.user else {
        return Ok(None);
    };
    let account = Account::find(user).map_err(Error::User)?;
    account.check().map_err(Error::User)?;
    Ok(Some(account))
}
