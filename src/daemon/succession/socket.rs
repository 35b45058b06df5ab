//! The socket on which successors ask.
//!
//! Main thread. [`Lobby`] serves the socket on a thread of its own.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::listen;
use rustix::process::geteuid;

use super::fail::FailPoint;
use super::lobby::Lobby;
use super::predecessor::{MainThread, Predecessor};
use crate::account::Account;
use crate::daemon::handle::Handle;
use crate::memory;
use crate::sandbox::{Sandbox, ThreadKind};
use crate::vhost_user::path::{BACKLOG, SocketAccess, SocketFile};
use crate::vhost_user::server::ServerError;

/// Time for the hand-over thread to refuse all that have asked, when this process ends.
const REFUSAL_TIME: Duration = Duration::from_secs(1);

/// The socket on which successors ask.
#[derive(Debug)]
pub(in crate::daemon) struct HandOverSocket {
    listener: Arc<OwnedFd>,
    file: SocketFile,
    /// The user that may take over, besides root.
    uid: libc::uid_t,
    fail_point: Option<FailPoint>,
    /// Ends all waits of the hand-over thread.
    interrupt: Option<Arc<OwnedFd>>,
    /// Disconnected when that thread has refused the processes that have asked by then.
    refused: Option<Receiver<()>>,
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
            interrupt: None,
            refused: None,
        }
    }

    pub(in crate::daemon) fn path(&self) -> &Path {
        self.file.path()
    }

    pub(super) fn listener(&self) -> &OwnedFd {
        &self.listener
    }

    /// Serves successors on a thread of its own, which asks the main thread through `handle`.
    ///
    /// # Errors
    /// No file descriptor is left, or the thread cannot be created.
    pub(in crate::daemon) fn serve(&mut self, sandbox: &Sandbox, handle: Handle) -> io::Result<()> {
        // The kernel names the process that has listened last to those that connect.
        listen(&self.listener, BACKLOG)?;
        let interrupt = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
        let lobby = Lobby::new(Arc::clone(&self.listener), self.uid, Arc::clone(&interrupt));
        let predecessor = Predecessor {
            main: MainThread(handle),
            fail_point: self.fail_point,
        };
        let (waiting, refused) = mpsc::channel();
        let body = move || predecessor.run(lobby, waiting);
        sandbox.spawn(ThreadKind::HandOver, "hand-over".to_owned(), body)?;
        self.interrupt = Some(interrupt);
        self.refused = Some(refused);
        Ok(())
    }

    /// Ends all waits of the hand-over thread, because the process is asked to end. Once disks are parked, the
    /// main thread still waits for [`Step::End`](super::Step::End), which comes soon.
    pub(in crate::daemon) fn interrupt(&self) {
        if let Some(interrupt) = &self.interrupt {
            // Fails only if the counter is full, and then the eventfd is readable already.
            let _ = rustix::io::write(interrupt, &1u64.to_ne_bytes());
        }
    }

    /// Tells all that have asked that this process is asked to end. Gives up after a second.
    pub(in crate::daemon) fn refuse_all(&self) {
        self.interrupt();
        if let Some(refused) = &self.refused {
            let _ = refused.recv_timeout(REFUSAL_TIME);
        }
    }
}
