//! The process that hands over: waits for a successor, describes itself, parks its disks, and ends or goes on.
//!
//! Main thread. It answers nobody else during a take-over.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rustix::net::{SocketFlags, accept_with};
use rustix::process::geteuid;

use super::fail::FailPoint;
use super::message::{
    DRAIN, Everything, Hello, LEAVE, LONG, Message, PROGRAM, ParkedRest, ParkedServiceManager, RESTORE, SHORT,
};
use crate::account::Account;
use crate::daemon::disks::Disk;
use crate::daemon::metrics::MetricsThread;
use crate::daemon::monitor::MonitorThread;
use crate::daemon::pid_file::PidFile;
use crate::daemon::registry::Registry;
use crate::error_chain::chain;
use crate::memory;
use crate::service_manager::ServiceManager;
use crate::succession::{Bundle, Line, LineError};
use crate::sys::socket::peer_credentials;
use crate::vhost_user::Parking;
use crate::vhost_user::path::{SocketAccess, SocketFile};
use crate::vhost_user::server::ServerError;

/// The socket on which successors ask.
#[derive(Debug)]
pub(in crate::daemon) struct HandOverSocket {
    listener: Arc<OwnedFd>,
    file: SocketFile,
    /// The user that may take over, besides root.
    uid: libc::uid_t,
    fail_point: Option<FailPoint>,
}

/// The parts of the process besides the objects, nodes and exports.
pub(in crate::daemon) struct Rest<'a> {
    pub(in crate::daemon) monitor: Option<&'a MonitorThread>,
    pub(in crate::daemon) metrics: Option<&'a MetricsThread>,
    pub(in crate::daemon) pid_file: Option<&'a PidFile>,
    pub(in crate::daemon) service_manager: &'a ServiceManager,
}

/// The end of a take-over.
#[derive(Debug)]
pub(in crate::daemon) enum Outcome {
    /// This process goes on.
    GoesOn,
    /// Another process serves the disks.
    HandedOver(Heir),
}

/// The process that serves the disks.
#[derive(Debug)]
pub(in crate::daemon) struct Heir {
    pub(in crate::daemon) pid: u32,
    line: Line,
}

impl Heir {
    /// Waits until this process is not needed any more.
    pub(in crate::daemon) fn wait(&self) {
        // Nothing is sent, and the line ends.
        let _ = self.line.receive::<Message>(Instant::now() + LEAVE);
    }
}

/// Refuses with a sentence for the other process.
struct Refusal(String);

impl<E: std::error::Error + 'static> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self(chain(&error))
    }
}

impl HandOverSocket {
    /// Listens at `path`. Only the user that the process switches to, and root, may take over. Call this before there are
    /// frontends.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub(in crate::daemon) fn bind(
        path: &Path,
        account: Option<&Account>,
        fail_point: Option<FailPoint>,
    ) -> Result<Self, ServerError> {
        let access = SocketAccess {
            owner: account.map(Account::uid),
            group: account.map(Account::gid),
            ..SocketAccess::default()
        };
        let (listener, file) = SocketFile::listen(path, &access)?;
        Ok(Self::on(listener, file, account, fail_point))
    }

    /// Uses a socket that listens already.
    pub(super) fn on(
        listener: UnixListener,
        file: SocketFile,
        account: Option<&Account>,
        fail_point: Option<FailPoint>,
    ) -> Self {
        memory::keep_files();
        Self {
            listener: Arc::new(listener.into()),
            file,
            uid: account.map_or_else(|| geteuid().as_raw(), Account::uid),
            fail_point,
        }
    }

    pub(in crate::daemon) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Returns what becomes readable when a successor asks.
    pub(in crate::daemon) fn socket(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.listener)
    }

    /// Accepts a successor and hands over to it, or refuses.
    pub(in crate::daemon) fn serve(&self, registry: &Registry, rest: &Rest<'_>) -> Outcome {
        let Ok(stream) = accept_with(&self.listener, SocketFlags::CLOEXEC) else {
            return Outcome::GoesOn;
        };
        let peer = peer_credentials(stream.as_fd()).ok();
        let Some(peer) = peer.filter(|peer| peer.uid == 0 || peer.uid == self.uid) else {
            tracing::warn!("a process of another user has asked to take over, and is refused");
            return Outcome::GoesOn;
        };
        let pid = u32::try_from(peer.pid).unwrap_or_default();
        let line = Line::new(stream.into());
        tracing::info!(pid, "a process asks to take over");
        FailPoint::Asked.reached(self.fail_point);
        match self.hand_over(&line, registry, rest) {
            Ok(()) => Outcome::HandedOver(Heir { pid, line }),
            Err(Refusal(reason)) => {
                tracing::warn!(pid, "nothing is handed over, and this process goes on: {reason}");
                let refused = Message::Refused { reason };
                // The other process may have ended.
                let _ = line.send(&refused, &Bundle::default(), Instant::now() + SHORT);
                Outcome::GoesOn
            }
        }
    }

    fn hand_over(&self, line: &Line, all: &Registry, rest: &Rest<'_>) -> Result<(), Refusal> {
        let none = Bundle::default();
        let soon = || Instant::now() + SHORT;
        let Message::Hello(hello) = receive(line, soon())? else {
            return Err(unexpected());
        };
        let format = hello.format().map_err(Refusal)?;
        line.send(&Message::Hello(Hello::new()), &none, soon())?;
        let mut bundle = Bundle::default();
        let everything = Everything {
            registry: all.describe(format, &mut bundle)?,
            rest: self.describe(rest, &mut bundle)?,
        };
        line.send(&Message::Everything(Box::new(everything)), &bundle, soon())?;
        drop(bundle);
        FailPoint::Passed.reached(self.fail_point);
        let Message::Ready = receive(line, Instant::now() + LONG)? else {
            return Err(unexpected());
        };
        self.hand_over_disks(line, all, format)
    }

    fn describe(&self, rest: &Rest<'_>, bundle: &mut Bundle) -> io::Result<ParkedRest> {
        let mut parked = ParkedRest {
            successors: (self.path().to_owned(), bundle.add(&self.listener)?),
            ..ParkedRest::default()
        };
        for (path, listener) in rest.monitor.into_iter().flat_map(MonitorThread::sockets) {
            parked.monitors.push((path.to_owned(), bundle.add(listener)?));
        }
        for (address, listener) in rest.metrics.into_iter().flat_map(MetricsThread::sockets) {
            parked.metrics.push((address.clone(), bundle.add(listener)?));
        }
        if let Some(file) = rest.pid_file {
            parked.pid_file = Some((file.path().to_owned(), bundle.add(file.file())?));
        }
        if let Some((socket, watchdog)) = rest.service_manager.to_pass() {
            parked.service_manager = Some(ParkedServiceManager {
                socket: bundle.add(socket)?,
                watchdog_us: watchdog.and_then(|limit| limit.as_micros().try_into().ok()),
            });
        }
        Ok(parked)
    }

    /// Parks all disks and passes them. The disks go on unless the other process has taken them.
    fn hand_over_disks(&self, line: &Line, all: &Registry, format: u32) -> Result<(), Refusal> {
        flush_ahead(all);
        FailPoint::Parking.reached(self.fail_point);
        let begin = Instant::now();
        let drained = begin + DRAIN;
        let disks: Vec<(&str, Parking)> = all.disks().map(|disk| (disk.id(), disk.park(drained))).collect();
        let mut parked = Vec::new();
        for (id, parking) in &disks {
            // A control thread that is busy with a message answers later.
            let disk = parking.wait(drained + DRAIN).and_then(|(disk, bundle)| {
                let disk = if format < 2 { disk.for_format_1()? } else { disk };
                Ok((disk, bundle))
            });
            let (disk, bundle) =
                disk.map_err(|error| Refusal(format!("export '{id}': {}", chain(&error))))?;
            parked.push((*id, disk, bundle));
        }
        FailPoint::Parked.reached(self.fail_point);
        let deadline = Instant::now() + RESTORE;
        for (id, disk, bundle) in parked {
            let message = Message::Disk {
                export: id.to_owned(),
                disk: Box::new(disk),
            };
            line.send(&message, &bundle, deadline)?;
        }
        line.send(&Message::Parked, &Bundle::default(), deadline)?;
        let milliseconds = begin.elapsed().as_millis();
        tracing::debug!(milliseconds, "disks parked");
        taken(line, deadline)?;
        FailPoint::HandedOver.reached(self.fail_point);
        match line.receive::<Message>(Instant::now() + SHORT) {
            // The other process is alive, and the owner of the disks.
            Ok(_) | Err(LineError::Late) => {
                // Dropping them would let the disks go on.
                disks
                    .into_iter()
                    .for_each(|(_, parking)| std::mem::forget(parking));
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Flushes the disks that will flush once their guests wait. Failures show then.
fn flush_ahead(all: &Registry) {
    let handles = all.disks().filter_map(Disk::handle);
    let flushes: Vec<_> = handles.filter_map(|handle| handle.flush_ahead()).collect();
    let deadline = Instant::now() + SHORT;
    for flush in flushes {
        let _ = flush.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

/// Waits until the other process says that it takes over. After an error it cannot say so any more.
fn taken(line: &Line, deadline: Instant) -> Result<(), Refusal> {
    let first = receive(line, deadline);
    let message = match first {
        Ok(message) => message,
        Err(refusal) => {
            let told = Message::Refused {
                reason: refusal.0.clone(),
            };
            // If it cannot be told, it sees that this process is alive.
            let _ = line.send(&told, &Bundle::default(), Instant::now());
            line.close();
            match line.receive::<Message>(Instant::now()) {
                Ok((message, _)) => message,
                Err(_) => return Err(refusal),
            }
        }
    };
    match message {
        Message::Taken => Ok(()),
        _ => Err(unexpected()),
    }
}

fn receive(line: &Line, deadline: Instant) -> Result<Message, Refusal> {
    match line.receive(deadline)?.0 {
        Message::Refused { reason } => Err(Refusal(reason)),
        message => Ok(message),
    }
}

fn unexpected() -> Refusal {
    Refusal(format!("{PROGRAM} has got an unexpected message"))
}
