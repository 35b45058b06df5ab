//! Connects to NBD servers, because the sandbox lets no thread of the daemon do so.
//!
//! Each export has a helper process of its own, which is forked before the daemon opens anything. It can connect to that
//! server and do nothing else: it has no other files, and sees no data of a guest. It also does the handshake, so that the
//! daemon gets connections that are ready for requests. It ends after the daemon, when the server has finished the daemon's
//! requests: until then no other daemon of this host gets a connection (see `predecessor`). Without a sandbox, servers that are named
//! later get a thread instead.

mod dial;
mod ending;
mod helper;
mod peer;
mod predecessor;
mod service;
mod start_error;
mod target;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;

use nix::unistd::{ForkResult, fork};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair};

pub use start_error::StartError;
use target::Target;

use crate::account::Account;
use crate::nbd::{Line, Server};
use crate::packet::receive;
use crate::sandbox::Mode;
use crate::sys::process::ignore_signal;

/// Starts a process that connects to `server` for `export`, confined as `mode` says. This process must have one thread.
///
/// # Errors
/// See [`StartError`].
pub fn start_process(
    server: &Server,
    export: &str,
    mode: Mode,
    account: Option<&Account>,
) -> Result<Arc<Line>, StartError> {
    let failed = |source: io::Error| StartError::Process {
        server: server.clone(),
        source,
    };
    let target = Target::of(server)?;
    let (ours, theirs) = pair().map_err(failed)?;
    // Nobody waits for the helper.
    ignore_signal(libc::SIGCHLD);
    // SAFETY: there is one thread, so the child finds no lock held.
    match unsafe { fork() }.map_err(|errno| failed(errno.into()))? {
        ForkResult::Child => helper::run(&theirs, target, (server, export), mode, account),
        ForkResult::Parent { .. } => drop(theirs),
    }
    match receive::<Result<(), String>>(&ours, RecvFlags::empty()).map_err(failed)? {
        Some((Ok(()), _)) => Ok(Arc::new(Line::new(server.clone(), export.to_owned(), ours))),
        Some((Err(why), _)) => Err(StartError::Setup {
            server: server.clone(),
            why,
        }),
        None => Err(failed(io::ErrorKind::UnexpectedEof.into())),
    }
}

/// Starts a thread that connects to `server` for `export`, in a process without a sandbox.
///
/// # Errors
/// See [`StartError`].
pub fn start_thread(server: &Server, export: &str) -> Result<Arc<Line>, StartError> {
    let failed = |source| StartError::Process {
        server: server.clone(),
        source,
    };
    let target = Target::of(server)?;
    let (ours, theirs) = pair().map_err(failed)?;
    let service = service::Service::new(target, server, export).map_err(failed)?;
    let body = move || service.run(&theirs);
    let thread = thread::Builder::new().name("nbd-connect".to_owned()).spawn(body);
    thread.map_err(failed)?;
    Ok(Arc::new(Line::new(server.clone(), export.to_owned(), ours)))
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}
