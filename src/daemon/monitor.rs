//! The monitor thread and its sockets, as the main thread sees them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use super::commands::{commands, tell, tell_of_disk};
use super::error::Error;
use super::handle::Handle;
use super::registry::Registry;
use crate::account::Account;
use crate::memory::keeps_files;
use crate::qmp::events::SHUTDOWN;
use crate::qmp::{Events, Monitor};
use crate::sandbox::{Sandbox, ThreadKind};
use crate::vhost_user::path::{SocketAccess, SocketFile};

/// The sockets for QMP clients, before they are served.
#[derive(Debug, Default)]
pub(super) struct MonitorSockets(Vec<(UnixListener, SocketFile)>);

impl MonitorSockets {
    /// Makes the sockets. Only the user that the process switches to may connect.
    ///
    /// # Errors
    /// A socket cannot be made.
    pub(super) fn bind(paths: &[PathBuf], account: Option<&Account>) -> Result<Self, Error> {
        let access = SocketAccess {
            owner: account.map(Account::uid),
            group: account.map(Account::gid),
            ..SocketAccess::default()
        };
        let sockets = paths.iter().map(|path| SocketFile::listen(path, &access));
        Ok(Self(sockets.collect::<Result<_, _>>()?))
    }

    /// Returns whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the paths of the sockets.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|(_, file)| file.path())
    }

    /// Adds sockets of a predecessor.
    pub(super) fn add(&mut self, sockets: Vec<(UnixListener, SocketFile)>) {
        self.0.extend(sockets);
    }

    /// Serves the sockets on a thread of its own. Clients use the registry through `handle`.
    ///
    /// # Errors
    /// No file descriptor is left, or the thread cannot be created.
    pub(super) fn serve(
        self,
        sandbox: &Sandbox,
        handle: Handle,
        registry: &mut Registry,
    ) -> io::Result<Option<MonitorThread>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let quit = handle.clone();
        let mut monitor = Monitor::new(handle, commands(), move || quit.quit())?;
        let (mut files, mut listeners) = (Vec::new(), Vec::new());
        for (listener, file) in self.0 {
            if keeps_files() {
                listeners.push(listener.as_fd().try_clone_to_owned()?);
            }
            monitor.listen(listener)?;
            files.push(file);
        }
        let events = monitor.events();
        registry.set_fdsets(monitor.fdsets());
        let clients = events.clone();
        registry.set_on_notice(Box::new(move |notice| tell(&clients, notice)));
        let clients = events.clone();
        registry.set_on_disk_notice(Box::new(move |id, node, notice| {
            tell_of_disk(&clients, id, node, notice);
        }));
        let body = move || monitor.run();
        let thread = sandbox.spawn(ThreadKind::Monitor, "monitor".to_owned(), body)?;
        Ok(Some(MonitorThread {
            events,
            thread,
            files,
            listeners,
        }))
    }
}

/// The running monitor thread.
#[derive(Debug)]
pub(super) struct MonitorThread {
    events: Events,
    thread: JoinHandle<()>,
    /// The files of the sockets, which are removed when the monitor has ended.
    files: Vec<SocketFile>,
    /// Duplicates of the sockets, if another process may take over.
    listeners: Vec<OwnedFd>,
}

impl MonitorThread {
    /// Returns the sockets with their paths, if another process may take over.
    pub(super) fn sockets(&self) -> impl Iterator<Item = (&Path, &OwnedFd)> {
        self.files.iter().map(SocketFile::path).zip(&self.listeners)
    }

    /// Tells clients that the process is about to end.
    pub(super) fn announce_end(&self, reason: &str) {
        let data = [
            ("guest".to_owned(), false.into()),
            ("reason".to_owned(), reason.into()),
        ];
        self.events.emit(&SHUTDOWN, data.into_iter().collect());
    }

    /// Ends the monitor after clients had a moment to read the last messages.
    pub(super) fn end(self) {
        self.events.stop();
        if self.thread.join().is_err() {
            tracing::error!("the monitor thread has panicked");
        }
    }
}
