//! The helper: confines itself, then connects whenever it is asked to, until the daemon ends.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::net::{RecvFlags, SendFlags};
use rustix::thread::set_name;

use super::dial;
use super::target::Target;
use crate::account::Account;
use crate::error_chain::chain;
use crate::nbd::{Answer, Ask};
use crate::packet::{receive, send};
use crate::sandbox::{Mode, Sandbox};
use crate::sys::process::{close_all_but, exit_now, ignore_signals_of_daemon};

/// The name of the process, in lists of processes.
const NAME: &std::ffi::CStr = c"nbd-connect";

/// Does the helper's work in a process that was just forked. Never returns.
pub(super) fn run(
    socket: &OwnedFd,
    (target, export): (&Target, &str),
    mode: Mode,
    account: Option<&Account>,
) -> ! {
    let ready = set_up(socket, target, mode, account);
    let failed = ready.is_err();
    let told = send(socket.as_fd(), &ready, &[], SendFlags::empty());
    if !failed && told.is_ok() {
        serve(socket, target, export);
    }
    exit_now(i32::from(failed));
}

fn set_up(socket: &OwnedFd, target: &Target, mode: Mode, account: Option<&Account>) -> Result<(), String> {
    ignore_signals_of_daemon();
    // A name is a convenience.
    let _ = set_name(NAME);
    // SAFETY: this process never comes back to the code that owns the other files.
    unsafe { close_all_but(&[socket.as_raw_fd()]) }
        .map_err(|error| format!("cannot close files: {error}"))?;
    let (socket, ports) = match target {
        Target::Unix(path) => (Some(path.as_path()), Vec::new()),
        Target::Inet(addresses) => (None, addresses.iter().map(std::net::SocketAddr::port).collect()),
    };
    Sandbox::confine_connector(mode, socket, &ports, account).map_err(|error| chain(&error))
}

/// Answers until the other end is closed.
pub(super) fn serve(socket: &OwnedFd, target: &Target, export: &str) {
    while let Ok(Some((Ask, _))) = receive(socket, RecvFlags::empty()) {
        let (answer, fd): (Answer, _) = match dial::connect(target, export) {
            Ok((fd, export)) => (Ok(export), Some(fd)),
            Err(why) => (Err(why), None),
        };
        let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
        if send(socket.as_fd(), &answer, &fds, SendFlags::empty()).is_err() {
            return;
        }
    }
}
