//! Connects to NBD servers, because the sandbox lets no thread of the daemon do so.
//!
//! Each export has a helper process of its own, which is forked before the daemon opens anything. It can connect to that
//! server and do nothing else: it has no other files. It also does the handshake, so that the daemon gets connections that
//! are ready for requests. It ends after the daemon, when the server has finished the daemon's requests: until then no other
//! daemon of this host gets a connection (see `predecessor`). It sees no data of a guest without TLS. With TLS it has a thread
//! for each connection, which encrypts (see `relay`). Without a sandbox, servers that are named later get a thread instead.

mod dial;
mod ending;
mod helper;
mod peer;
mod predecessor;
mod relay;
mod service;
mod start_error;
mod target;
mod tls;
mod tls_error;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;

use nix::unistd::{ForkResult, fork};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair};

use service::Service;
pub use start_error::StartError;
use target::Target;

use crate::account::Account;
use crate::nbd::{Line, Remote};
use crate::packet::receive;
use crate::sandbox::Mode;
use crate::sys::process::ignore_signal;

/// Starts a process that connects to an export, confined as `mode` says. This process must have one thread.
///
/// # Errors
/// See [`StartError`].
pub fn start_process(
    remote: &Remote,
    mode: Mode,
    account: Option<&Account>,
) -> Result<Arc<Line>, StartError> {
    let failed = |source: io::Error| StartError::Process {
        server: remote.server.clone(),
        source,
    };
    let target = Target::of(&remote.server)?;
    let (ours, theirs) = pair().map_err(failed)?;
    // Nobody waits for the helper.
    ignore_signal(libc::SIGCHLD);
    // SAFETY: there is one thread, so the child finds no lock held.
    match unsafe { fork() }.map_err(|errno| failed(errno.into()))? {
        ForkResult::Child => helper::run(&theirs, target, remote, mode, account),
        ForkResult::Parent { .. } => drop(theirs),
    }
    match receive::<Result<(), String>>(&ours, RecvFlags::empty()).map_err(failed)? {
        Some((Ok(()), _)) => Ok(Arc::new(Line::new(remote.clone(), ours))),
        Some((Err(why), _)) => Err(StartError::Setup {
            server: remote.server.clone(),
            why,
        }),
        None => Err(failed(io::ErrorKind::UnexpectedEof.into())),
    }
}

/// Starts a thread that connects to an export, in a process without a sandbox.
///
/// # Errors
/// See [`StartError`].
pub fn start_thread(remote: &Remote) -> Result<Arc<Line>, StartError> {
    let failed = |source| StartError::Process {
        server: remote.server.clone(),
        source,
    };
    let target = Target::of(&remote.server)?;
    let (ours, theirs) = pair().map_err(failed)?;
    let service = Service::new(target, remote).map_err(|why| StartError::Setup {
        server: remote.server.clone(),
        why,
    })?;
    let body = move || service.run(&theirs);
    let thread = thread::Builder::new().name("nbd-connect".to_owned()).spawn(body);
    thread.map_err(failed)?;
    Ok(Arc::new(Line::new(remote.clone(), ours)))
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}
