//! Earlier processes that used the same export. Helper only.
//!
//! A helper outlives its daemon until the server has finished what the daemon had sent. The helper of the next daemon waits
//! for that, so that no request of the past is executed after a later one. All helpers of an export listen on abstract
//! sockets with names that follow from the export. A helper answers while its daemon lives, and closes the connection when
//! it has nothing to wait for.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
    listen, recv, send, socket_with,
};
use rustix::process::geteuid;

/// Maximum number of processes on one export that know of each other.
const NAMES: usize = 16;
/// The answer of a helper whose daemon lives.
const ALIVE: &[u8] = b"alive";

/// Returns the names of the sockets for an export, which `server` and `export` identify.
fn names(server: &str, export: &str) -> impl Iterator<Item = io::Result<SocketAddrUnix>> {
    // FNV-1a: any version of this program has to find the same names.
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let bytes = [server.as_bytes(), b"\0", export.as_bytes()].concat();
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325, step);
    (0..NAMES).map(move |number| {
        let name = format!("vhost-user-blk/nbd/{hash:016x}/{number}");
        Ok(SocketAddrUnix::new_abstract_name(name.as_bytes())?)
    })
}

fn stream() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// Connections to the helpers that were there first.
#[derive(Debug, Default)]
pub(super) struct Predecessors(Vec<OwnedFd>);

impl Predecessors {
    /// Connects to the helpers of this user on the same export.
    pub(super) fn find(server: &str, export: &str) -> io::Result<Self> {
        let mut found = Vec::new();
        for name in names(server, export) {
            let socket = stream()?;
            // Anybody may use the name. Nobody but this user can keep us waiting.
            if connect(&socket, &name?).is_ok() && socket_peercred(&socket)?.uid == geteuid() {
                found.push(socket);
            }
        }
        Ok(Self(found))
    }

    /// Waits until none of them has anything to wait for. Returns false if `end` comes first.
    pub(super) fn wait(&mut self, end: Instant) -> bool {
        self.0.retain(|socket| !is_over(socket, end));
        self.0.is_empty()
    }
}

/// Returns whether the helper at the other end has nothing to wait for.
fn is_over(socket: &OwnedFd, end: Instant) -> bool {
    loop {
        match recv(socket, &mut [0; ALIVE.len()][..], RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN) => {}
            Err(Errno::INTR) => continue,
            // Alive, or gone.
            _ => return true,
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        let _ = poll(
            &mut [PollFd::new(socket, PollFlags::IN)],
            left.try_into().ok().as_ref(),
        );
    }
}

/// The socket on which later helpers ask, if a name was left.
#[derive(Debug)]
pub(super) struct Presence(OwnedFd);

impl Presence {
    pub(super) fn announce(server: &str, export: &str) -> io::Result<Option<Self>> {
        for name in names(server, export) {
            let socket = stream()?;
            if bind(&socket, &name?).is_ok() {
                listen(&socket, 64)?;
                return Ok(Some(Self(socket)));
            }
        }
        Ok(None)
    }

    pub(super) fn awaited(&self) -> PollFd<'_> {
        PollFd::new(&self.0, PollFlags::IN)
    }

    /// Returns the helpers that have asked.
    pub(super) fn asking(&self) -> impl Iterator<Item = OwnedFd> {
        std::iter::from_fn(|| accept_with(&self.0, SocketFlags::CLOEXEC).ok())
    }
}

/// Tells a later helper that it need not wait: the daemon lives, and shares the export with the later one.
#[allow(
    clippy::needless_pass_by_value,
    reason = "the connection ends with the answer"
)]
pub(super) fn answer_alive(asker: OwnedFd) {
    let _ = send(&asker, ALIVE, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_helper_is_waited_for_until_it_answers_or_ends() {
        let export = format!("test {}", std::process::id());
        let find = || Predecessors::find("server", &export).expect("sockets");
        let soon = || Instant::now() + Duration::from_millis(20);
        let first = Presence::announce("server", &export)
            .expect("a socket")
            .expect("a name");
        let second = Presence::announce("server", &export)
            .expect("a socket")
            .expect("a name");
        let mut predecessors = find();
        assert_eq!(predecessors.0.len(), 2);
        first.asking().for_each(answer_alive);
        assert!(!predecessors.wait(soon()));
        drop(second);
        assert!(predecessors.wait(soon()));
        assert!(!find().wait(soon()));
        assert_eq!(Predecessors::find("server", "other").expect("sockets").0.len(), 0);
    }
}
