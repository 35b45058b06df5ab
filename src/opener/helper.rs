//! The helper process: confines itself, then carries out requests until the daemon ends.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{RecvFlags, SendFlags};
use rustix::thread::set_name;

use super::files;
use super::message::{Outcome, Request};
use super::place::Directory;
use super::sockets::{self, Made};
use crate::account::Account;
use crate::error_chain::chain;
use crate::packet::{receive, send};
use crate::sandbox::{Mode, Sandbox};
use crate::sys::process::{close_all_but, exit_now, ignore_signals_of_daemon};

/// The name of the process, in lists of processes.
const NAME: &std::ffi::CStr = c"sandbox-path";

/// Does the helper's work in a process that was just forked. Never returns.
pub(super) fn run(socket: &OwnedFd, directories: Vec<Directory>, mode: Mode, account: Option<&Account>) -> ! {
    let directories: Vec<OwnedFd> = directories.into_iter().map(|directory| directory.fd).collect();
    let ready = set_up(socket, &directories, mode, account);
    let failed = ready.is_err();
    let told = send(socket.as_fd(), &Outcome::Ready(ready), &[], SendFlags::empty());
    if !failed && told.is_ok() {
        serve(socket, &directories);
    }
    exit_now(i32::from(failed));
}

fn set_up(
    socket: &OwnedFd,
    directories: &[OwnedFd],
    mode: Mode,
    account: Option<&Account>,
) -> Result<(), String> {
    ignore_signals_of_daemon();
    // A name is a convenience.
    let _ = set_name(NAME);
    let kept: Vec<_> = directories
        .iter()
        .chain([socket])
        .map(AsRawFd::as_raw_fd)
        .collect();
    // SAFETY: this process never comes back to the code that owns the other files.
    unsafe { close_all_but(&kept) }.map_err(|error| format!("cannot close files: {error}"))?;
    Sandbox::confine_helper(mode, directories, account).map_err(|error| chain(&error))?;
    if let Some(directory) = directories.first() {
        // A filter of a container may lack this call.
        files::find(directory.as_fd(), ".".as_ref(), rustix::fs::OFlags::DIRECTORY)
            .map_err(|refusal| format!("openat2 does not work here: {refusal:?}"))?;
    }
    Ok(())
}

fn serve(socket: &OwnedFd, directories: &[OwnedFd]) {
    let mut made: Vec<Made> = Vec::new();
    // A request that is no request comes from a daemon that is not itself any more.
    while let Ok(Some((request, _))) = receive(socket, RecvFlags::empty()) {
        match request {
            Request::Open {
                directory,
                rest,
                file,
            } => {
                let opened = beneath(directories, directory).and_then(|fd| files::open(fd, &rest, file));
                let _ = match opened {
                    Ok((image, sibling)) => {
                        let fds = [Some(&image), sibling.as_ref()].into_iter().flatten();
                        answer(socket, &Outcome::File, &fds.map(AsFd::as_fd).collect::<Vec<_>>())
                    }
                    Err(refusal) => answer(socket, &Outcome::Refused(refusal), &[]),
                };
            }
            Request::Listen {
                directory,
                rest,
                number,
                socket: wanted,
            } => {
                let listening = beneath(directories, directory)
                    .and_then(|fd| sockets::listen(fd, &rest, number, &wanted));
                match listening {
                    Ok((listener, file)) => match answer(socket, &Outcome::Socket, &[listener.as_fd()]) {
                        Ok(()) => made.push(file),
                        Err(_) => file.remove(),
                    },
                    Err(refusal) => drop(answer(socket, &Outcome::Refused(refusal), &[])),
                }
            }
            Request::Remove { number } => {
                made.extract_if(.., |file| file.number == number)
                    .for_each(|file| file.remove());
                drop(answer(socket, &Outcome::Removed(number), &[]));
            }
            Request::End => return made.iter().for_each(Made::remove),
        }
    }
}

fn beneath(directories: &[OwnedFd], index: usize) -> Result<BorrowedFd<'_>, super::Refusal> {
    let directory = directories.get(index).map(AsFd::as_fd);
    directory.ok_or(super::Refusal::Os(libc::EINVAL))
}

fn answer(socket: &OwnedFd, outcome: &Outcome, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    send(socket.as_fd(), outcome, fds, SendFlags::empty())
}
