//! Encrypts what the daemon sends, and decrypts what the server sends. One thread for each connection, of the helper.
//!
//! The daemon has one end of a socket pair in place of the connection, so an IOThread reads and writes as without TLS, and
//! works while another thread encrypts. Each direction keeps a limited amount of data: when one side does not read, the
//! other is not read either. If one side ends the connection, so does the relay.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use rustls::ClientConnection;

/// Bytes that are read from the server at a time.
const FROM_SERVER: usize = 256 << 10;
/// Bytes that are read from the daemon at a time.
const FROM_DAEMON: usize = 64 << 10;

/// A connection and its two ends.
struct Relay {
    tls: ClientConnection,
    network: Arc<OwnedFd>,
    daemon: OwnedFd,
    /// The bytes that were read last.
    buffer: Vec<u8>,
    /// Decrypted bytes for the daemon, from `sent` on.
    clear: Vec<u8>,
    sent: usize,
    server_ended: bool,
}

/// Starts a relay. Returns the daemon's end.
///
/// # Errors
/// There is no room for another socket or thread.
pub(super) fn start(tls: ClientConnection, network: &Arc<OwnedFd>) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let mut relay = Relay {
        tls,
        network: Arc::clone(network),
        daemon: ours,
        buffer: vec![0; FROM_SERVER],
        clear: Vec::new(),
        sent: 0,
        server_ended: false,
    };
    // What waits here is limited by what is read.
    relay.tls.set_buffer_limit(None);
    let body = move || {
        // The end of the thread ends both connections: the daemon notices, and the service waits for the server.
        let _ = relay.run();
    };
    thread::Builder::new().name("nbd-tls".to_owned()).spawn(body)?;
    Ok(theirs)
}

impl Relay {
    /// Passes data on until one side has ended.
    fn run(&mut self) -> io::Result<()> {
        // The handshake may have left something.
        let left = self.tls.process_new_packets().map_err(io::Error::other)?;
        self.decrypt(left.plaintext_bytes_to_read())?;
        while !self.server_ended || !self.is_sent() {
            let (daemon, network) = self.wait()?;
            if daemon.intersects(PollFlags::IN | PollFlags::HUP) && !self.encrypt()? {
                // Nothing follows. The server may hear of it.
                self.tls.send_close_notify();
                return self.write_network();
            }
            if self.tls.wants_write() {
                self.write_network()?;
            }
            if network.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                self.read_network()?;
            }
            self.write_daemon()?;
        }
        Ok(())
    }

    /// Waits until there is something to do. Returns the news of the daemon's end and of the server's.
    fn wait(&self) -> io::Result<(PollFlags, PollFlags)> {
        let (mut daemon, mut network) = (PollFlags::empty(), PollFlags::empty());
        daemon.set(PollFlags::IN, !self.tls.wants_write());
        daemon.set(PollFlags::OUT, !self.is_sent());
        network.set(PollFlags::OUT, self.tls.wants_write() && !self.server_ended);
        network.set(PollFlags::IN, self.is_sent() && !self.server_ended);
        // An end that is not asked would tell of its hang-up again and again.
        let asked = [(self.daemon.as_fd(), daemon), (self.network.as_fd(), network)];
        let asked = asked.iter().filter(|(_, events)| !events.is_empty());
        let mut fds: Vec<_> = asked.map(|(fd, events)| PollFd::new(fd, *events)).collect();
        while let Err(error) = poll(&mut fds, None) {
            if error != Errno::INTR {
                return Err(error.into());
            }
        }
        let mut news = fds.iter().map(PollFd::revents);
        let mut of = |events: PollFlags| match events.is_empty() {
            true => events,
            false => news.next().unwrap_or(events),
        };
        Ok((of(daemon), of(network)))
    }

    fn is_sent(&self) -> bool {
        self.sent == self.clear.len()
    }

    /// Encrypts what the daemon has sent. Returns false if it has closed its end.
    fn encrypt(&mut self) -> io::Result<bool> {
        let Some(len) = received(self.daemon.as_fd(), &mut self.buffer[..FROM_DAEMON])? else {
            return Ok(true);
        };
        self.tls.writer().write_all(&self.buffer[..len])?;
        Ok(len > 0)
    }

    fn write_network(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut Network(self.network.as_fd())) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                result => result.map(drop)?,
            }
        }
        Ok(())
    }

    /// Decrypts what the server has sent.
    fn read_network(&mut self) -> io::Result<()> {
        if !self.is_sent() || self.server_ended {
            return Ok(());
        }
        let Some(len) = received(self.network.as_fd(), &mut self.buffer)? else {
            return Ok(());
        };
        self.server_ended = len == 0;
        self.sent = 0;
        self.clear.clear();
        let buffer = std::mem::take(&mut self.buffer);
        let mut rest = &buffer[..len];
        while !rest.is_empty() {
            self.tls.read_tls(&mut rest)?;
            let state = self.tls.process_new_packets().map_err(io::Error::other)?;
            self.server_ended |= state.peer_has_closed();
            self.decrypt(state.plaintext_bytes_to_read())?;
            if self.server_ended {
                break;
            }
        }
        self.buffer = buffer;
        Ok(())
    }

    fn decrypt(&mut self, len: usize) -> io::Result<()> {
        let old = self.clear.len();
        self.clear.resize(old + len, 0);
        self.tls.reader().read_exact(&mut self.clear[old..])
    }

    fn write_daemon(&mut self) -> io::Result<()> {
        while !self.is_sent() {
            match send(&self.daemon, &self.clear[self.sent..], SendFlags::NOSIGNAL) {
                Ok(len) => self.sent += len,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Reads what has come: `None` if there is nothing, 0 bytes at the end.
fn received(socket: BorrowedFd<'_>, to: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        match recv(socket, &mut *to, RecvFlags::empty()) {
            Ok((len, _)) => return Ok(Some(len)),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Writes to the server without waiting. A server that has gone away raises no signal, because the helper ignores it.
struct Network<'a>(BorrowedFd<'a>);

impl Write for Network<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(rustix::io::writev(self.0, parts)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
