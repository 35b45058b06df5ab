//! The registry of served disks. Each disk has a node, a device, a socket, a control thread and statistics.
//!
//! Only one thread adds and removes disks. Both are possible at any time, and neither waits for another disk.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::thread::{JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use super::roster::{DiskFigures, Roster};
use crate::aio::Gone;
use crate::blk::device::{BlkDevice, DiskFacts};
use crate::blk::handle::DiskHandle;
use crate::blk::position::AskedPositions;
use crate::blk::stats::DiskReport;
use crate::iothread::IoThread;
use crate::memory::keeps_files;
use crate::sandbox::{Sandbox, ThreadKind};
use crate::vhost_user::server::Server;
use crate::vhost_user::{Parking, Resizer, Stopper};

/// Is called with the id of a disk, on its control thread, just before that thread ends.
pub type OnEnd = Arc<dyn Fn(&str) + Send + Sync>;

/// The reason why a disk cannot be added.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AddError {
    /// Another disk has the id.
    #[error("there is a disk {0} already")]
    Exists(String),
    /// The control thread cannot be created.
    #[error("cannot create the control thread of disk {id}")]
    Thread {
        /// The disk's id.
        id: String,
        /// The error of the operating system.
        source: io::Error,
    },
}

/// The disks of this process, by id.
pub struct Disks {
    disks: BTreeMap<String, Disk>,
    sandbox: Sandbox,
    roster: Roster,
    on_end: OnEnd,
}

/// Time for the control thread of an idle disk to run, on a machine that is very busy.
const SCHEDULING_TIME: Duration = Duration::from_secs(10);

/// A disk that is served.
#[derive(Debug)]
pub struct Disk {
    id: String,
    /// Weak, because the disk's resources belong to its control thread.
    handle: Weak<DiskHandle>,
    figures: Arc<DiskFigures>,
    /// The socket's path, or the number of its descriptor.
    socket: String,
    /// The path of the socket, if this process must remove it.
    path: Option<PathBuf>,
    /// A duplicate of the socket, if another process may take over.
    listener: Option<OwnedFd>,
    /// The path of the socket's file, if this process or its helper removes it.
    file: Option<PathBuf>,
    stopper: Stopper,
    resizer: Resizer,
    /// Receives a message when the control thread has released the disk.
    ended: Receiver<()>,
    control: JoinHandle<()>,
}

impl Disks {
    /// Makes an empty registry. `sandbox` will confine the control threads of the disks.
    pub fn new(sandbox: Sandbox, on_end: OnEnd) -> Self {
        Self {
            disks: BTreeMap::new(),
            sandbox,
            roster: Roster::default(),
            on_end,
        }
    }

    /// Shows the statistics of the disks in `roster`.
    pub(super) fn listed_in(self, roster: &Roster) -> Self {
        Self {
            roster: roster.clone(),
            ..self
        }
    }

    /// Serves a disk on a control thread of its own. `iothreads` live at least as long as the disk.
    ///
    /// # Errors
    /// The id is taken, or the thread cannot be created. The disk and its socket are removed.
    pub fn add(
        &mut self,
        id: &str,
        mut device: BlkDevice,
        server: Server,
        iothreads: Vec<Arc<IoThread>>,
    ) -> Result<&Disk, AddError> {
        if self.disks.contains_key(id) {
            return Err(AddError::Exists(id.to_owned()));
        }
        let (done, ended) = mpsc::channel();
        let handle = Arc::downgrade(device.handle());
        let figures = Arc::new(DiskFigures::new(id, &device));
        let resizer = server.resizer(&device);
        let (socket, path) = (server.name().to_owned(), server.path().map(Path::to_owned));
        let file = server.file().map(Path::to_owned);
        let listener = keeps_files().then(|| server.duplicate().ok()).flatten();
        let stopper = server.stopper();
        let (on_end, own) = (Arc::clone(&self.on_end), id.to_owned());
        let body = move || {
            server.run(&mut device);
            // The size may be looked at (SIGHUP).
            device.control().wait_until_idle();
            // The queues must be dropped before their threads.
            drop(device);
            drop(iothreads);
            // Fails if nobody waits. Sent before the call, because its receiver looks for this message.
            let _ = done.send(());
            on_end(&own);
        };
        let spawned = self
            .sandbox
            .spawn(ThreadKind::Control, "control".to_owned(), body);
        let control = spawned.map_err(|source| AddError::Thread {
            id: id.to_owned(),
            source,
        })?;
        self.roster.add_disk(&figures);
        let disk = Disk {
            id: id.to_owned(),
            handle,
            figures,
            socket,
            path,
            listener,
            file,
            stopper,
            resizer,
            ended,
            control,
        };
        Ok(self.disks.entry(id.to_owned()).or_insert(disk))
    }

    /// Starts to remove a disk, without waiting: disconnects its frontend, flushes and releases its image.
    pub fn remove(&mut self, id: &str) -> Option<Disk> {
        let mut disk = self.disks.remove(id)?;
        self.roster.remove_disk(id);
        disk.stopper.stop();
        // The control thread removes the socket now. Another disk, or another process, may use the path then.
        disk.path = None;
        Some(disk)
    }

    /// Returns the disk with this id.
    pub fn get(&self, id: &str) -> Option<&Disk> {
        self.disks.get(id)
    }

    /// Returns the disks, ordered by id.
    pub fn iter(&self) -> impl Iterator<Item = &Disk> {
        self.disks.values()
    }

    /// Removes and returns the disks whose control threads have ended by themselves.
    pub fn take_ended(&mut self) -> Vec<Disk> {
        // The threads may not have exited yet.
        let ended = self.iter().filter(|disk| disk.wait(Duration::ZERO));
        let ids: Vec<_> = ended.map(|disk| disk.id().to_owned()).collect();
        ids.iter().for_each(|id| self.roster.remove_disk(id));
        ids.iter().filter_map(|id| self.disks.remove(id)).collect()
    }

    /// Makes the IOThreads read the size of every disk again, without waiting for them.
    ///
    /// # Errors
    /// An IOThread has ended. The sizes of the other disks are read anyway.
    pub fn refresh_sizes(&self) -> Result<(), Gone> {
        let refreshed = self.iter().map(|disk| disk.resizer.refresh());
        refreshed.fold(Ok(()), Result::and)
    }

    /// Ends all disks because the process is going to end, and waits for them until none has ended for `time`: on a busy
    /// machine, hundreds of disks take longer than one. A disk that has nothing in flight only needs the processor, and one
    /// whose requests complete one after the other gets on, so this waits for up to ten seconds longer.
    ///
    /// Their images are neither flushed nor unlocked: the next process finds their data in the page cache. `leaving` are
    /// disks that are being removed; they are waited for as well.
    pub fn end(&mut self, leaving: Vec<Disk>, time: Duration) -> Ended {
        self.iter().for_each(|disk| disk.stopper.end());
        let disks = std::mem::take(&mut self.disks).into_values().chain(leaving);
        let mut deadline = Instant::now() + time;
        let ends = |disk: &Disk| {
            if disk.wait(Duration::ZERO) {
                return true;
            }
            let ended = ends_by(disk, deadline, time) || (disk.is_idle() && disk.wait(SCHEDULING_TIME));
            if ended {
                deadline = Instant::now() + time;
            }
            ended
        };
        let (finished, busy) = disks.partition(ends);
        Ended { finished, busy }
    }
}

/// Waits for a disk until `deadline`, or until none of its requests has completed for `time`, but for ten seconds more at
/// most.
fn ends_by(disk: &Disk, mut deadline: Instant, time: Duration) -> bool {
    let last = deadline + SCHEDULING_TIME;
    let mut in_flight = disk.report().total.in_flight;
    loop {
        if disk.wait(deadline.saturating_duration_since(Instant::now())) {
            return true;
        }
        let now = disk.report().total.in_flight;
        if now >= in_flight || Instant::now() >= last {
            return false;
        }
        in_flight = now;
        deadline = last.min(Instant::now() + time);
    }
}

/// The disks after the end.
#[derive(Debug, Default)]
pub struct Ended {
    /// Disks that have answered all requests.
    pub finished: Vec<Disk>,
    /// Disks that still have requests in flight.
    pub busy: Vec<Disk>,
}

impl Ended {
    /// Returns the disks of both kinds.
    pub fn all(&self) -> impl Iterator<Item = &Disk> {
        self.finished.iter().chain(&self.busy)
    }
}

impl Disk {
    /// Returns the disk's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the control thread. No other disk ever has the same one.
    pub(super) fn thread(&self) -> ThreadId {
        self.control.thread().id()
    }

    /// Returns the name of the disk in messages.
    pub fn name(&self) -> &str {
        self.figures.name()
    }

    /// Returns the handle for threads that change the node below the disk, or `None` if the disk has ended. The disk's
    /// IOThreads must live at least as long as the handle.
    pub fn handle(&self) -> Option<Arc<DiskHandle>> {
        self.handle.upgrade()
    }

    /// Returns the path of the disk's socket, or the number of its descriptor.
    pub fn socket(&self) -> &str {
        &self.socket
    }

    /// Returns the path of the socket, if this process has made it and must remove it.
    pub fn socket_path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Returns the path of the socket's file, if this process or its helper removes it.
    pub(super) fn socket_file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Returns a duplicate of the socket, if another process may take over.
    pub(super) fn listener(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(AsFd::as_fd)
    }

    /// Parks the disk for another process. Requests in flight are waited for until `deadline`.
    pub(super) fn park(&self, deadline: Instant) -> Parking {
        self.stopper.park(deadline)
    }

    /// Returns facts for threads that show them.
    pub(super) fn facts(&self) -> &DiskFacts {
        self.figures.facts()
    }

    /// Reads the disk's statistics.
    pub fn report(&self) -> DiskReport {
        self.figures.report()
    }

    /// Asks the IOThreads where the disk's rings stand, without waiting. Returns `None` if the disk has ended.
    pub(super) fn ask_positions(&self) -> Option<AskedPositions> {
        self.handle().map(|handle| handle.ask_positions())
    }

    /// Returns a handle that makes the disk read its size again.
    pub fn resizer(&self) -> &Resizer {
        &self.resizer
    }

    /// Returns whether nothing is in flight, neither of a guest nor of the control thread.
    fn is_idle(&self) -> bool {
        self.report().total.in_flight == 0 && !self.resizer.is_busy()
    }

    /// Waits until the control thread has released the disk, at most for `time`. Returns whether it has.
    ///
    /// # Panics
    /// The control thread has panicked.
    pub fn wait(&self, time: Duration) -> bool {
        match self.ended.recv_timeout(time) {
            Ok(()) => true,
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => panic!("a control thread has panicked"),
        }
    }

    /// Waits for the control thread to end, however long that takes.
    ///
    /// # Panics
    /// The control thread has panicked.
    pub fn join(self) {
        self.control.join().expect("a control thread has panicked");
    }
}

impl fmt::Debug for Disks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disks")
            .field("disks", &self.disks)
            .finish_non_exhaustive()
    }
}
