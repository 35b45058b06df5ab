//! The helper: confines itself, then does its work, until the daemon has ended and the server is done with its requests.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use rustix::net::SendFlags;
use rustix::thread::set_name;

use super::service::Service;
use super::target::Target;
use crate::account::Account;
use crate::error_chain::chain;
use crate::lifeline;
use crate::nbd::Remote;
use crate::packet::send;
use crate::sandbox::{Mode, Sandbox};
use crate::sys::process::{close_all_but, exit_now, ignore_signals_of_daemon};

/// The name of the process, in lists of processes.
const NAME: &std::ffi::CStr = c"nbd-connect";

/// Does the helper's work in a process that was just forked. Never returns.
pub(super) fn run(
    socket: &OwnedFd,
    target: Target,
    remote: &Remote,
    mode: Mode,
    account: Option<&Account>,
) -> ! {
    let set_up = set_up(socket, target, remote, mode, account);
    let (ready, service) = match set_up {
        Ok(service) => (Ok(()), Some(service)),
        Err(why) => (Err(why), None),
    };
    let failed = service.is_none();
    let told = send(socket.as_fd(), &ready, &[], SendFlags::empty());
    if let (Some(service), Ok(())) = (service, told) {
        service.run(socket);
    }
    exit_now(i32::from(failed));
}

fn set_up(
    socket: &OwnedFd,
    target: Target,
    remote: &Remote,
    mode: Mode,
    account: Option<&Account>,
) -> Result<Service, String> {
    ignore_signals_of_daemon();
    // A name is a convenience.
    let _ = set_name(NAME);
    let kept: Vec<RawFd> = [socket.as_raw_fd()]
        .into_iter()
        .chain(lifeline::writer().map(|fd| fd.as_raw_fd()))
        .collect();
    // SAFETY: this process never comes back to the code that owns the other files.
    unsafe { close_all_but(&kept) }.map_err(|error| format!("cannot close files: {error}"))?;
    let (path, ports) = match &target {
        Target::Unix(path) => (Some(path.clone()), Vec::new()),
        Target::Inet(addresses) => (None, addresses.iter().map(std::net::SocketAddr::port).collect()),
    };
    let service = Service::new(target, remote)?;
    Sandbox::confine_connector(mode, path.as_deref(), &ports, account).map_err(|error| chain(&error))?;
    Ok(service)
}
