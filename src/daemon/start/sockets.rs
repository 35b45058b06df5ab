//! The sockets and files of the process that belong to no disk. Main thread.

use std::path::PathBuf;

use crate::account::Account;
use crate::daemon::error::Error;
use crate::daemon::metrics::MetricsSockets;
use crate::daemon::monitor::MonitorSockets;
use crate::daemon::pid_file::PidFile;
use crate::daemon::settings::{MetricsAddress, Settings};
use crate::daemon::succession::{HandOverSocket, Successor};
use crate::service_manager::ServiceManager;

/// The sockets and files of the process that belong to no disk.
pub(super) struct Sockets {
    pub(super) monitors: MonitorSockets,
    pub(super) metrics: MetricsSockets,
    pub(super) pid_file: Option<PidFile>,
    pub(super) service_manager: ServiceManager,
    pub(super) hand_over: Option<HandOverSocket>,
}

/// Makes them, or takes them from a predecessor and makes those that it has not passed.
///
/// # Errors
/// A socket or a file cannot be made, or the predecessor has passed something else.
pub(super) fn make_sockets(
    settings: &Settings,
    account: Option<&Account>,
    successor: Option<&mut Successor>,
) -> Result<Sockets, Error> {
    let Some(successor) = successor else {
        let bind = |path: &PathBuf| HandOverSocket::bind(path, account, settings.fail_point);
        return Ok(Sockets {
            monitors: MonitorSockets::bind(&settings.monitors, account)?,
            metrics: MetricsSockets::bind(&settings.metrics, account)?,
            pid_file: write_pid_file(settings)?,
            service_manager: ServiceManager::connect().map_err(Error::ServiceManager)?,
            hand_over: settings.hand_over.as_ref().map(bind).transpose()?,
        });
    };
    let passed = successor.monitors()?;
    let is_new = |path: &&PathBuf| passed.iter().all(|(_, file)| file.path() != **path);
    let new: Vec<PathBuf> = settings.monitors.iter().filter(is_new).cloned().collect();
    let mut monitors = MonitorSockets::bind(&new, account)?;
    monitors.add(passed);
    let passed = successor.metrics()?;
    let is_new = |new: &&MetricsAddress| passed.iter().all(|(old, _)| *old != new.to_string());
    let new: Vec<MetricsAddress> = settings.metrics.iter().filter(is_new).cloned().collect();
    let mut metrics = MetricsSockets::bind(&new, account)?;
    for (address, socket) in passed {
        metrics.add(address, socket);
    }
    let pid_file = match successor.pid_file()? {
        Some(file) => Some(file),
        None => write_pid_file(settings)?,
    };
    let service_manager = match successor.service_manager()? {
        Some(passed) => passed,
        None => ServiceManager::connect().map_err(Error::ServiceManager)?,
    };
    Ok(Sockets {
        monitors,
        metrics,
        pid_file,
        service_manager,
        hand_over: Some(successor.hand_over_socket(account)?),
    })
}

fn write_pid_file(settings: &Settings) -> Result<Option<PidFile>, Error> {
    let Some(path) = &settings.pid_file else {
        return Ok(None);
    };
    let written = PidFile::write(path).map_err(|source| Error::PidFile {
        path: path.clone(),
        source,
    });
    written.map(Some)
}

/// Writes this process's number to a file that a predecessor has passed.
pub(super) fn rewrite(pid_file: Option<&mut PidFile>) {
    if let Some(file) = pid_file
        && let Err(error) = file.rewrite()
    {
        let path = file.path().display();
        tracing::warn!(%path, %error, "cannot write the process's number");
    }
}
