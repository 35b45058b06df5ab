//! The main thread's work in a take-over: describes everything, and parks the disks.
//!
//! Main thread.

use std::io;
use std::time::Instant;

use super::message::{Everything, IfKilled, LIFELINE, ParkedRest, ParkedServiceManager};
use super::refusal::Refusal;
use super::socket::HandOverSocket;
use super::steps::{Described, Flush, ParkedDisk};
use crate::daemon::disks::Disk;
use crate::daemon::metrics::MetricsThread;
use crate::daemon::monitor::MonitorThread;
use crate::daemon::pid_file::PidFile;
use crate::daemon::registry::Registry;
use crate::lifeline::{self, Promise};
use crate::service_manager::ServiceManager;
use crate::succession::Bundle;

/// The parts of the process besides the objects, nodes and exports.
pub(in crate::daemon) struct Rest<'a> {
    pub(in crate::daemon) monitor: Option<&'a MonitorThread>,
    pub(in crate::daemon) metrics: Option<&'a MetricsThread>,
    pub(in crate::daemon) pid_file: Option<&'a PidFile>,
    pub(in crate::daemon) service_manager: &'a ServiceManager,
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
) -> Result<(Described, Promise), Refusal> {
    let mut bundle = Bundle::default();
    let mut everything = Everything {
        registry: registry.describe(format, &mut bundle)?,
        rest: describe_rest(rest, socket, &mut bundle)?,
    };
    let (promise, other) = Promise::new()?;
    if format >= LIFELINE
        && let Some(lifeline) = lifeline::reader()
    {
        everything.rest.if_killed = Some(IfKilled {
            lifeline: bundle.add(lifeline)?,
            promise: bundle.add(other)?,
        });
    }
    Ok(((Box::new(everything), bundle), promise))
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
