//! The process that takes over: asks the old one, makes what it describes, and goes on with its disks.
//!
//! Main thread.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::TakeOverError;
use super::asking::{Unanswered, ask};
use super::fail::FailPoint;
use super::message::{Everything, IfKilled, LEAVE, LONG, Message, ParkedRest, RESTORE, SHORT};
use super::socket::HandOverSocket;
use crate::account::Account;
use crate::daemon::pid_file::PidFile;
use crate::daemon::registry::{ParkedRegistry, Registry};
use crate::daemon::settings::Settings;
use crate::error_chain::chain;
use crate::interrupt;
use crate::lifeline;
use crate::service_manager::ServiceManager;
use crate::succession::{self, Bundle, Line, LineError};
use crate::sys::socket::peer_credentials;
use crate::vhost_user::Heir;
use crate::vhost_user::path::SocketFile;

/// Time for the old process to end after it has closed its files.
const SECOND: Duration = Duration::from_secs(1);

/// A take-over that has begun.
#[derive(Debug)]
pub(in crate::daemon) struct Successor {
    line: Line,
    /// The old process, if it is visible.
    process: Option<OwnedFd>,
    path: PathBuf,
    parked: Option<ParkedRegistry>,
    rest: ParkedRest,
    bundle: Bundle,
    heirs: BTreeMap<String, Heir>,
    /// The ends of the old process's lifeline and promise. Older versions have none.
    if_killed: Option<(OwnedFd, OwnedFd)>,
    fail_point: Option<FailPoint>,
}

/// How the old process has passed its disks.
enum Received {
    All,
    /// It has ended, or has closed the line.
    EndOfLine,
}

type Result<T> = std::result::Result<T, TakeOverError>;

/// A socket that the old process has passed, with its path.
pub(in crate::daemon) type PassedSocket = (UnixListener, SocketFile);

/// The old process, which has nothing to serve any more.
#[derive(Debug)]
pub(in crate::daemon) struct Left {
    line: Line,
    process: Option<OwnedFd>,
}

impl Left {
    /// Makes the old process name this one to the service manager, which believes nobody else, and end. Waits for that.
    pub(in crate::daemon) fn end(self) {
        drop(self.line);
        if let (Some(process), Ok(time)) = (&self.process, Timespec::try_from(LEAVE)) {
            let _ = poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&time));
        }
    }
}

impl Successor {
    /// Asks the process that listens at `path`, and receives what it describes. Returns `None` if that process has been
    /// killed before.
    ///
    /// # Errors
    /// Nobody listens there, or the process refuses. It goes on.
    pub(in crate::daemon) fn ask(path: &Path, fail_point: Option<FailPoint>) -> Result<Option<Self>> {
        let told =
            |reason: String| TakeOverError(format!("cannot take over at {}: {reason}", path.display()));
        let stream = UnixStream::connect(path).map_err(|error| {
            told(format!(
                "{error}: name the socket that the old process was given with --hand-over"
            ))
        })?;
        FailPoint::Connected.reached(fail_point);
        let peer = peer_credentials(stream.as_fd()).ok();
        let peer = peer.and_then(|peer| Pid::from_raw(peer.pid));
        let process = peer.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let line = Line::new(stream).ended_by(interrupt::is_requested);
        let (everything, mut bundle) = match ask(&line, path) {
            Ok(described) => described,
            // One that is asked to end says so.
            Err(Unanswered::Line(LineError::Closed)) if has_ended(process.as_ref()) => {
                succession::is_over();
                return Ok(None);
            }
            Err(Unanswered::Line(LineError::Closed)) => {
                return Err(told(
                    "the old process has closed the line: its log says whether it ends, or accepts no process of this user"
                        .to_owned(),
                ));
            }
            Err(unanswered) => return Err(told(chain(&unanswered))),
        };
        FailPoint::Described.reached(fail_point);
        let Everything { registry, mut rest } = everything;
        let mut take = |place| bundle.take(place).map_err(|error| told(chain(&error)));
        let if_killed = match rest.if_killed.take() {
            Some(IfKilled { lifeline, promise }) => Some((take(lifeline)?, take(promise)?)),
            None => None,
        };
        Ok(Some(Self {
            if_killed,
            process,
            line,
            path: path.to_owned(),
            parked: Some(registry),
            rest,
            bundle,
            heirs: BTreeMap::new(),
            fail_point,
        }))
    }

    fn refused(&self, reason: &str) -> TakeOverError {
        TakeOverError(format!("cannot take over at {}: {reason}", self.path.display()))
    }

    fn told(&self, error: &(dyn std::error::Error + 'static)) -> TakeOverError {
        self.refuse(chain(error))
    }

    /// Tells the other process why it goes on. Returns the error for the user.
    fn refuse(&self, reason: String) -> TakeOverError {
        let error = self.refused(&reason);
        let refused = Message::Refused { reason };
        // The other process may have ended.
        let _ = self
            .line
            .send(&refused, &Bundle::default(), Instant::now() + SHORT);
        error
    }

    /// Makes the objects, nodes and exports of the old process.
    ///
    /// # Errors
    /// One cannot be made here.
    pub(in crate::daemon) fn restore(&mut self, all: &mut Registry, settings: &Settings) -> Result<()> {
        let Some(parked) = self.parked.take() else {
            return Ok(());
        };
        let restored = all.restore(parked, settings, &mut self.bundle);
        self.heirs = restored.map_err(|error| self.told(&error))?;
        FailPoint::Made.reached(self.fail_point);
        Ok(())
    }

    /// Returns the sockets for QMP clients.
    ///
    /// # Errors
    /// A descriptor is missing.
    pub(in crate::daemon) fn monitors(&mut self) -> Result<Vec<PassedSocket>> {
        let sockets = std::mem::take(&mut self.rest.monitors).into_iter();
        sockets.map(|(path, place)| self.socket(&path, place)).collect()
    }

    fn socket(&mut self, path: &Path, place: usize) -> Result<PassedSocket> {
        let listener: OwnedFd = self.take(place)?;
        let listener = UnixListener::from(listener);
        let file = SocketFile::passed(path, &listener);
        let file = file.ok_or_else(|| {
            self.refuse(format!(
                "{} is not the socket of the old process any more",
                path.display()
            ))
        })?;
        Ok((listener, file))
    }

    fn take(&mut self, place: usize) -> Result<OwnedFd> {
        let taken = self.bundle.take(place);
        taken.map_err(|error| self.told(&error))
    }

    /// Returns the sockets for metrics, with their addresses.
    ///
    /// # Errors
    /// A descriptor is missing.
    pub(in crate::daemon) fn metrics(&mut self) -> Result<Vec<(String, OwnedFd)>> {
        let sockets = std::mem::take(&mut self.rest.metrics).into_iter();
        sockets
            .map(|(address, place)| Ok((address, self.take(place)?)))
            .collect()
    }

    /// Returns the pid file.
    ///
    /// # Errors
    /// A descriptor is missing.
    pub(in crate::daemon) fn pid_file(&mut self) -> Result<Option<PidFile>> {
        let Some((path, place)) = self.rest.pid_file.take() else {
            return Ok(None);
        };
        Ok(Some(PidFile::passed(path, self.take(place)?.into())))
    }

    /// Returns the connection to the service manager.
    ///
    /// # Errors
    /// A descriptor is missing.
    pub(in crate::daemon) fn service_manager(&mut self) -> Result<Option<ServiceManager>> {
        let Some(parked) = self.rest.service_manager.take() else {
            return Ok(None);
        };
        let watchdog = parked.watchdog_us.map(Duration::from_micros);
        Ok(Some(ServiceManager::passed(self.take(parked.socket)?, watchdog)))
    }

    /// Returns the socket for the next take-over.
    ///
    /// # Errors
    /// A descriptor is missing.
    pub(in crate::daemon) fn hand_over_socket(
        &mut self,
        account: Option<&Account>,
    ) -> Result<HandOverSocket> {
        let (path, place) = std::mem::take(&mut self.rest.successors);
        let (listener, file) = self.socket(&path, place)?;
        Ok(HandOverSocket::on(listener, file, account, self.fail_point))
    }

    /// Takes over the disks. All of them have their control threads, which wait. Returns the old process, if it is alive.
    ///
    /// # Errors
    /// The old process goes on, or has ended and nothing is known about its last requests.
    pub(in crate::daemon) fn take_over(mut self) -> Result<Option<Left>> {
        let mut waiting = std::mem::take(&mut self.heirs);
        let mut heirs = Vec::new();
        let alone = match self.receive_disks(&mut waiting, &mut heirs)? {
            Received::All => false,
            Received::EndOfLine => {
                self.check_that_old_is_over(&heirs)?;
                true
            }
        };
        FailPoint::Received.reached(self.fail_point);
        if !alone && let Some(export) = waiting.keys().next() {
            return Err(self.refuse(format!("export '{export}' was not passed")));
        }
        let deadline = Instant::now() + RESTORE;
        for (export, heir) in &heirs {
            let restored = heir.wait(deadline);
            restored.map_err(|error| self.refuse(format!("export '{export}': {}", chain(&error))))?;
        }
        FailPoint::Restored.reached(self.fail_point);
        let alone = alone || self.tell_taken(deadline)?;
        succession::is_over();
        FailPoint::Taken.reached(self.fail_point);
        // Before the rings are touched: if this process ends earlier, the old one goes on where it has stopped. It ends
        // when it hears this, or nothing.
        let _ = self.line.send(&Message::Starts, &Bundle::default(), deadline);
        heirs.iter().for_each(|(_, heir)| heir.start());
        waiting.values().for_each(Heir::begin_anew);
        let disks = heirs.len() + waiting.len();
        tracing::info!(disks, "serving, in place of the old process");
        Ok((!alone).then_some(Left {
            line: self.line,
            process: self.process,
        }))
    }

    /// Receives the disks, as far as the old process passes them. Moves their heirs from `waiting` to `heirs`.
    fn receive_disks(
        &self,
        waiting: &mut BTreeMap<String, Heir>,
        heirs: &mut Vec<(String, Heir)>,
    ) -> Result<Received> {
        let deadline = Instant::now() + LONG;
        match self.line.send(&Message::Ready, &Bundle::default(), deadline) {
            // It may have refused before.
            Ok(()) | Err(LineError::Closed) => {}
            Err(error) => return Err(self.told(&error)),
        }
        FailPoint::Ready.reached(self.fail_point);
        loop {
            match self.line.receive(deadline) {
                Ok((Message::Disk { export, disk }, bundle)) => {
                    let Some(heir) = waiting.remove(&export) else {
                        return Err(self.refuse(format!("there is no export '{export}'")));
                    };
                    heir.hand_over(*disk, bundle);
                    heirs.push((export, heir));
                }
                Ok((Message::Parked, _)) => return Ok(Received::All),
                Ok((Message::Refused { reason }, _)) => return Err(self.refused(&reason)),
                Ok(_) => return Err(self.refuse("an unexpected message has come".to_owned())),
                Err(LineError::Closed) => return Ok(Received::EndOfLine),
                Err(error) => return Err(self.told(&error)),
            }
        }
    }

    /// Says that the disks are this process's own. Returns true if the old one has ended after it has parked them.
    fn tell_taken(&self, deadline: Instant) -> Result<bool> {
        match self.line.send(&Message::Taken, &Bundle::default(), deadline) {
            Ok(()) => Ok(false),
            Err(LineError::Closed) => self.check_that_old_has_ended().map(|()| true),
            Err(error) => Err(self.told(&error)),
        }
    }

    /// Waits until the old process has ended with all its requests. It has closed the line before it has passed all disks.
    ///
    /// If it has passed some, it may have gone on with them before its end.
    fn check_that_old_is_over(&self, passed: &[(String, Heir)]) -> Result<()> {
        let Some((lifeline, promise)) = self.if_killed.as_ref().filter(|_| passed.is_empty()) else {
            return Err(self.told(&LineError::Closed));
        };
        let ended = || {
            self.refused("the old process has ended, and was asked to, or its disks were changed meanwhile")
        };
        if lifeline::is_broken(promise) {
            return Err(ended());
        }
        // One that only closes the line serves its disks.
        let patience = if self.process.is_some() && !self.has_ended() {
            SECOND
        } else {
            tracing::warn!(
                "the old process has ended before it has passed its disks: serving them as soon as its last requests have ended"
            );
            LONG
        };
        let deadline = Instant::now() + patience;
        if !lifeline::wait_for_end(lifeline, deadline, interrupt::is_requested) {
            return Err(self.told(&match interrupt::is_requested() {
                true => LineError::Interrupted,
                false => LineError::Late,
            }));
        }
        // It may have been told to end while it was waited for.
        if lifeline::is_broken(promise) {
            return Err(ended());
        }
        Ok(())
    }

    /// Checks that the old process has ended with its disks parked. One that only closes the line serves its disks. So did
    /// one that has said that it goes on, even if it has ended since.
    fn check_that_old_has_ended(&self) -> Result<()> {
        if let Ok((Message::Refused { reason }, _)) = self.line.receive(Instant::now()) {
            return Err(self.refused(&reason));
        }
        let lifeline = self.if_killed.as_ref().map(|(lifeline, _)| lifeline);
        let is_over = |line| lifeline::wait_for_end(line, Instant::now() + SECOND, interrupt::is_requested);
        if !self.has_ended() && !lifeline.is_some_and(is_over) {
            return Err(self.told(&LineError::Closed));
        }
        tracing::warn!("the old process has ended, after it has parked its disks: going on with them");
        Ok(())
    }

    fn has_ended(&self) -> bool {
        has_ended(self.process.as_ref())
    }
}

/// Returns whether a process has ended, if it is visible. Waits a second for it.
fn has_ended(process: Option<&OwnedFd>) -> bool {
    let Some(process) = process else {
        return false;
    };
    let mut polled = [PollFd::new(process, PollFlags::IN)];
    // It closes its files before it has ended.
    let second = Timespec::try_from(SECOND).ok();
    poll(&mut polled, second.as_ref()).is_ok_and(|ready| ready > 0)
}
