//! Connects to a server and does the handshake, within a limited time. Helper only.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_keepalive, set_tcp_nodelay, socket_error};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect as connect_to,
    recv, send, socket_with,
};

use super::target::Target;
use crate::nbd::{Export, negotiate};

/// Connects, and negotiates the use of an export, until `end` at the latest. The connection does not block.
pub(super) fn connect(target: &Target, export: &str, end: Instant) -> Result<(OwnedFd, Export), String> {
    let socket = dial(target, end).map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => "the server does not answer".to_owned(),
        _ => format!("cannot connect: {error}"),
    })?;
    let mut stream = Stream { socket, end };
    let export = negotiate(&mut stream, export).map_err(|error| error.to_string())?;
    Ok((stream.socket, export))
}

fn dial(target: &Target, end: Instant) -> io::Result<OwnedFd> {
    match target {
        Target::Unix(path) => {
            let address = SocketAddrUnix::new(path.as_path())?;
            let socket = make(AddressFamily::UNIX)?;
            finish(&socket, connect_to(&socket, &address), end)?;
            Ok(socket)
        }
        Target::Inet(addresses) => {
            let mut last = io::ErrorKind::NotFound.into();
            for address in addresses {
                match dial_one(address, end) {
                    Ok(socket) => return Ok(socket),
                    Err(error) => last = error,
                }
            }
            Err(last)
        }
    }
}

fn dial_one(address: &SocketAddr, end: Instant) -> io::Result<OwnedFd> {
    let socket = make(match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    })?;
    finish(&socket, connect_to(&socket, address), end)?;
    set_tcp_nodelay(&socket, true)?;
    // A host that has vanished is noticed at some time.
    set_socket_keepalive(&socket, true)?;
    Ok(socket)
}

fn make(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(family, SocketType::STREAM, flags, None)?)
}

/// Waits until a connection is there, or has failed.
fn finish(socket: &OwnedFd, result: Result<(), Errno>, end: Instant) -> io::Result<()> {
    match result {
        Err(Errno::INPROGRESS) => {
            wait(socket, PollFlags::OUT, end)?;
            Ok(socket_error(socket)??)
        }
        result => Ok(result?),
    }
}

/// Waits until the socket is ready.
fn wait(socket: &OwnedFd, events: PollFlags, end: Instant) -> io::Result<()> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match poll(&mut [PollFd::new(socket, events)], left.try_into().ok().as_ref()) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// A socket whose calls all end at the same time.
struct Stream {
    socket: OwnedFd,
    end: Instant,
}

impl Read for Stream {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        loop {
            wait(&self.socket, PollFlags::IN, self.end)?;
            match recv(&self.socket, &mut *to, RecvFlags::empty()) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                received => return Ok(received?.0),
            }
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            wait(&self.socket, PollFlags::OUT, self.end)?;
            match send(&self.socket, bytes, SendFlags::NOSIGNAL) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                sent => return Ok(sent?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
