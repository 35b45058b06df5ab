//! The steps of a take-over that need the main thread: the hand-over thread asks for them and waits.
//!
//! Hand-over thread, but for [`describe`] and [`park`], which are the main thread's.

use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Instant;

use super::Outcome;
use super::message::{Everything, ParkedRest, ParkedServiceManager};
use super::refusal::Refusal;
use super::socket::HandOverSocket;
use crate::daemon::disks::Disk;
use crate::daemon::handle::Handle;
use crate::daemon::metrics::MetricsThread;
use crate::daemon::monitor::MonitorThread;
use crate::daemon::pid_file::PidFile;
use crate::daemon::registry::Registry;
use crate::service_manager::ServiceManager;
use crate::succession::Bundle;
use crate::vhost_user::Parking;

/// A description, with the descriptors that it names.
pub(in crate::daemon) type Described = (Box<Everything>, Bundle);
/// A flush that has begun.
pub(in crate::daemon) type Flush = Receiver<io::Result<()>>;
/// A disk that parks its session, with its id.
pub(in crate::daemon) type ParkedDisk = (String, Parking);

/// A step that the main thread takes.
pub(in crate::daemon) enum Step {
    /// Describes everything in this format.
    Describe {
        format: u32,
        reply: Sender<Result<Described, Refusal>>,
    },
    /// Starts the flushes that disks make once their guests wait.
    FlushAhead { reply: Sender<Vec<Flush>> },
    /// Parks all disks, with requests in flight waited for until `deadline`. If that begins, an [`End`](Self::End) follows.
    Park {
        deadline: Instant,
        reply: Sender<Result<Vec<ParkedDisk>, Refusal>>,
    },
    /// The end of the take-over.
    End(Outcome),
}

/// The parts of the process besides the objects, nodes and exports.
pub(in crate::daemon) struct Rest<'a> {
    pub(in crate::daemon) monitor: Option<&'a MonitorThread>,
    pub(in crate::daemon) metrics: Option<&'a MetricsThread>,
    pub(in crate::daemon) pid_file: Option<&'a PidFile>,
    pub(in crate::daemon) service_manager: &'a ServiceManager,
}

/// Asks the main thread.
pub(super) struct MainThread(pub(super) Handle);

impl MainThread {
    /// Asks for a step and waits for its result.
    ///
    /// # Errors
    /// The process is ending.
    pub(super) fn ask<T>(&self, step: impl FnOnce(Sender<T>) -> Step) -> Result<T, Refusal> {
        let (reply, result) = mpsc::channel();
        self.0.hand_over(step(reply));
        result
            .recv()
            .map_err(|_| Refusal("the process is ending".to_owned()))
    }

    /// Tells the end.
    pub(super) fn tell(&self, outcome: Outcome) {
        self.0.hand_over(Step::End(outcome));
    }
}

/// Describes everything for another process.
///
/// # Errors
/// Something cannot be handed over, or not now; or no file descriptor is left.
pub(in crate::daemon) fn describe(
    format: u32,
    registry: &Registry,
    rest: &Rest<'_>,
    socket: &HandOverSocket,
) -> Result<Described, Refusal> {
    let mut bundle = Bundle::default();
    let everything = Everything {
        registry: registry.describe(format, &mut bundle)?,
        rest: describe_rest(rest, socket, &mut bundle)?,
    };
    Ok((Box::new(everything), bundle))
}

fn describe_rest(rest: &Rest<'_>, socket: &HandOverSocket, bundle: &mut Bundle) -> io::Result<ParkedRest> {
    let mut parked = ParkedRest {
        successors: (socket.path().to_owned(), bundle.add(socket.listener())?),
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

/// Starts the flushes that disks make once their guests wait. Failures show then.
pub(in crate::daemon) fn flush_ahead(registry: &Registry) -> Vec<Flush> {
    let handles = registry.disks().filter_map(Disk::handle);
    handles.filter_map(|handle| handle.flush_ahead()).collect()
}

/// Parks all disks.
pub(in crate::daemon) fn park(registry: &Registry, deadline: Instant) -> Vec<ParkedDisk> {
    let park = |disk: &Disk| (disk.id().to_owned(), disk.park(deadline));
    registry.disks().map(park).collect()
}
