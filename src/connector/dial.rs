//! Connects to a server and does the handshake, within a limited time. Helper only.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_keepalive, set_tcp_nodelay, socket_error};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect as connect_to,
    recv, send, socket_with,
};

use super::relay;
use super::target::Target;
use super::tls::TlsClient;
use crate::nbd::{Export, HandshakeError, choose_export, greet, start_tls};

/// A connection that is ready for requests. It does not block.
pub(super) struct Dialled {
    /// The connection itself.
    pub(super) network: Arc<OwnedFd>,
    /// The daemon's end of a relay, if the connection is encrypted.
    pub(super) relayed: Option<OwnedFd>,
    pub(super) export: Export,
}

/// Connects, and negotiates the use of an export, until `end` at the latest.
pub(super) fn connect(
    target: &Target,
    export: &str,
    tls: Option<&TlsClient>,
    end: Instant,
) -> Result<Dialled, String> {
    let socket = dial(target, end).map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => "the server does not answer".to_owned(),
        _ => format!("cannot connect: {error}"),
    })?;
    let mut stream = Stream { socket, end };
    let clear = |error: HandshakeError| error.to_string();
    let greeting = greet(&mut stream).map_err(clear)?;
    let Some(tls) = tls else {
        let export = choose_export(&mut stream, greeting, export).map_err(clear)?;
        return Ok(Dialled {
            network: Arc::new(stream.socket),
            relayed: None,
            export,
        });
    };
    start_tls(&mut stream, greeting).map_err(clear)?;
    let mut encrypted = tls.handshake(&mut stream)?;
    let negotiated = choose_export(
        &mut rustls::Stream::new(&mut encrypted, &mut stream),
        greeting,
        export,
    );
    let export = negotiated.map_err(|error| match error {
        // Servers check the client's certificate when the client thinks that the handshake is over.
        HandshakeError::Closed | HandshakeError::ExportClosed(_) => tls.closed(),
        HandshakeError::Io(error) => tls.failure(&error),
        error => error.to_string(),
    })?;
    let network = Arc::new(stream.socket);
    let relayed = relay::start(encrypted, &network);
    let relayed = relayed.map_err(|error| format!("nothing can encrypt the connection: {error}"))?;
    Ok(Dialled {
        network,
        relayed: Some(relayed),
        export,
    })
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
