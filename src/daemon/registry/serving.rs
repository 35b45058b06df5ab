//! Starts the exports with their IOThreads, removes exports, and ends all of them. Main thread only.

use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::callbacks::{Done, Notice, OnDiskNotice};
use super::error::OperationError;
use super::exports::{Export, Made, confine};
use super::{Leaving, Registry, Running};
use crate::aio::Gone;
use crate::daemon::disks::{Disk, Disks, Ended, OnEnd};
use crate::iothread::IoThread;
use crate::sandbox::Sandbox;

/// Time that a hard removal waits for requests in flight.
const HARD_TIME: Duration = Duration::from_secs(1);

/// The ways to remove an export.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RemoveMode {
    /// Answers when all requests in flight have ended.
    #[default]
    Safe,
    /// Answers soon. A disk that does not answer is left behind, and its node stays in use.
    Hard,
}

impl Registry {
    /// Serves a disk whose queues have been made.
    pub(super) fn serve(&mut self, id: &str, export: &Export, made: Made) -> Result<(), OperationError> {
        listen(&made, id, export, &self.on_disk_notice);
        match &mut self.running {
            Some(running) => add(&mut running.disks, id, made),
            None => Ok(()),
        }
    }

    /// Starts all IOThreads and serves all exports, confined by `sandbox`. Must be called once. In a `managed` process,
    /// IOThreads also get the resources that later disks may need.
    ///
    /// # Errors
    /// A thread cannot be created, or an image is in use.
    pub fn start(&mut self, sandbox: &Sandbox, managed: bool, on_end: OnEnd) -> Result<(), OperationError> {
        let mut disks = Disks::new(sandbox.clone(), on_end).listed_in(&self.roster);
        let own = self.objects.iothreads();
        let of_exports = self.exports.values().flat_map(|export| &export.iothreads);
        let mut new = Vec::new();
        for iothread in own.chain(of_exports) {
            if iothread.start(sandbox, &self.roster)? {
                new.extend(iothread.thread().cloned());
            }
        }
        let mut made = Vec::new();
        for (id, export) in &mut self.exports {
            let Some(prepared) = export.prepared.take() else {
                continue;
            };
            let threads = export
                .iothreads
                .iter()
                .filter_map(|iothread| iothread.thread().cloned());
            made.push((id.clone(), prepared.make(threads.collect())?));
        }
        if managed {
            let prepare = |iothread: &Arc<IoThread>| iothread.call(|resources| resources.prepare());
            new.iter().try_for_each(prepare)?;
        }
        self.nodes.confined = !sandbox.allows_names();
        self.sockets.confined = self.nodes.confined;
        // Before the first request: workers inherit the filters of their IOThread.
        for iothread in &new {
            confine(iothread, sandbox)?;
        }
        made.iter_mut().try_for_each(|(_, made)| made.activate())?;
        for (id, made) in made {
            if let Some(export) = self.exports.get(&id) {
                listen(&made, &id, export, &self.on_disk_notice);
            }
            add(&mut disks, &id, made)?;
        }
        self.running = Some(Running {
            disks,
            sandbox: sandbox.clone(),
        });
        Ok(())
    }

    /// Removes an export. `done` is called when the removal is over.
    ///
    /// A removal that waits for its disk may become a hard one.
    pub fn export_del(&mut self, id: &str, mode: RemoveMode, done: Done) {
        let mut waiting = self.leaving.iter_mut().filter(|leaving| !leaving.done.is_empty());
        if let Some(leaving) = waiting.find(|leaving| leaving.id == id) {
            if mode == RemoveMode::Safe {
                return done(Err(OperationError::Leaving { id: id.to_owned() }));
            }
            let deadline = Instant::now() + HARD_TIME;
            leaving.deadline = leaving.deadline.map(|old| old.min(deadline)).or(Some(deadline));
            leaving.done.push(done);
            return;
        }
        let disk = self.running.as_mut().and_then(|running| running.disks.remove(id));
        // Without a disk, the export is being added.
        let export = disk.as_ref().and_then(|_| self.exports.remove(id));
        let (Some(export), Some(disk)) = (export, disk) else {
            return done(Err(OperationError::NoExport { id: id.to_owned() }));
        };
        self.leaving.push(Leaving {
            id: id.to_owned(),
            export,
            disk,
            ended: false,
            done: vec![done],
            deadline: (mode == RemoveMode::Hard).then(|| Instant::now() + HARD_TIME),
        });
        self.follow_up();
    }

    /// Finishes removals of disks that have ended and whose sockets are gone, and answers removals whose time is over.
    pub(in crate::daemon) fn follow_up(&mut self) {
        let now = Instant::now();
        for mut leaving in mem::take(&mut self.leaving) {
            if !leaving.ended && leaving.disk.wait(Duration::ZERO) {
                leaving.ended = true;
                // Another process removes the socket. If that hangs, this removal does not wait for long.
                leaving.deadline = leaving.deadline.or(Some(now + HARD_TIME));
            }
            let late = leaving.deadline.is_some_and(|deadline| deadline <= now);
            let over = leaving.ended && (late || !self.names.has_socket(leaving.disk.socket()));
            if (over || late) && !leaving.done.is_empty() {
                let id = leaving.id.clone();
                (self.on_notice)(&Notice::ExportDeleted { id });
                leaving.done.drain(..).for_each(|done| done(Ok(())));
            }
            match over {
                true => leaving.disk.join(),
                false => self.leaving.push(leaving),
            }
        }
        self.remove_ended();
    }

    /// Removes exports whose only frontend has left.
    fn remove_ended(&mut self) {
        let Some(running) = &mut self.running else { return };
        for disk in running.disks.take_ended() {
            let id = disk.id().to_owned();
            disk.join();
            self.exports.remove(&id);
            (self.on_notice)(&Notice::ExportDeleted { id });
        }
    }

    /// Returns the time of the next call to [`follow_up`](Self::follow_up), if nothing else causes one earlier.
    pub(in crate::daemon) fn deadline(&self) -> Option<Instant> {
        let waiting = self.leaving.iter().filter(|leaving| !leaving.done.is_empty());
        waiting.filter_map(|leaving| leaving.deadline).min()
    }

    /// Reports requests of an export that take at least `slower_than`, for `time` from now on.
    ///
    /// # Errors
    /// There is no such export.
    pub fn trace_requests(
        &self,
        id: &str,
        slower_than: Duration,
        time: Duration,
    ) -> Result<(), OperationError> {
        let disk = self.disks().find(|disk| disk.id() == id);
        let handle = disk.and_then(Disk::handle);
        let handle = handle.ok_or_else(|| OperationError::NoExport { id: id.to_owned() })?;
        handle.trace(slower_than, time);
        Ok(())
    }

    /// Returns the served disks, ordered by the ids of their exports.
    pub fn disks(&self) -> impl Iterator<Item = &Disk> {
        self.running.iter().flat_map(|running| running.disks.iter())
    }

    /// Makes the IOThreads read the size of every disk again, without waiting for them.
    ///
    /// # Errors
    /// An IOThread has ended. The sizes of the other disks are read anyway.
    pub fn refresh_sizes(&self) -> Result<(), Gone> {
        match &self.running {
            None => Ok(()),
            Some(running) => running.disks.refresh_sizes(),
        }
    }

    /// Ends all disks because the process is going to end, and waits for them until `time` has passed.
    pub(in crate::daemon) fn end(&mut self, time: Duration) -> Ended {
        let Some(running) = &mut self.running else {
            return Ended::default();
        };
        let (mut removals, mut gone, mut going) = (HashMap::new(), Vec::new(), Vec::new());
        for leaving in mem::take(&mut self.leaving) {
            removals.insert(leaving.disk.thread(), leaving.done);
            match leaving.ended {
                true => gone.push(leaving.disk),
                false => going.push(leaving.disk),
            }
        }
        let mut ended = running.disks.end(going, time);
        ended.finished.extend(gone);
        for disk in &ended.finished {
            let waiting = removals.remove(&disk.thread());
            // A hard removal is announced when its time is over.
            if waiting.as_ref().is_some_and(Vec::is_empty) {
                continue;
            }
            let id = disk.id().to_owned();
            (self.on_notice)(&Notice::ExportDeleted { id });
            waiting.into_iter().flatten().for_each(|done| done(Ok(())));
        }
        ended
    }

    /// Leaves the IOThreads running, because joining them could take for ever.
    pub(in crate::daemon) fn abandon(self) {
        mem::forget(self);
    }
}

/// Forwards the notices of a disk.
fn listen(made: &Made, id: &str, export: &Export, on_notice: &OnDiskNotice) {
    let (id, on_notice) = (id.to_owned(), Arc::clone(on_notice));
    let node = Arc::clone(&export.node_in_events);
    made.device.state().notices().listen(Box::new(move |notice| {
        if let Some(on_notice) = on_notice.get() {
            let node = node.lock().unwrap_or_else(PoisonError::into_inner).clone();
            on_notice(&id, &node, notice);
        }
    }));
}

fn add(disks: &mut Disks, id: &str, made: Made) -> Result<(), OperationError> {
    made.announce();
    disks.add(id, made.device, made.server, made.iothreads)?;
    Ok(())
}
