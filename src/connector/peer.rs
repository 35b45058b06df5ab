//! The other end of a Unix socket: whether it is closed, or only shut down.
//!
//! A server may shut a connection down before it has executed all of its requests (qemu-nbd does), but it closes its
//! descriptor after the last one. Only the kernel's list of sockets (sock_diag) tells the two apart.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::fstat;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

const HEADER: usize = 16;
/// Length of what follows the header in a question, and of the fixed part of an answer.
const REQUEST: usize = 24;
const FIXED: usize = 16;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const UDIAG_SHOW_PEER: u32 = 4;
const UNIX_DIAG_PEER: u16 = 2;

/// Asks the kernel about Unix sockets.
#[derive(Debug)]
pub(super) struct Peers(OwnedFd);

impl Peers {
    pub(super) fn new() -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            Some(netlink::SOCK_DIAG),
        )?;
        Ok(Self(socket))
    }

    /// Returns whether no process has the other end of `socket` any more.
    ///
    /// # Errors
    /// The kernel cannot tell (it may lack `unix_diag`).
    pub(super) fn is_closed(&self, socket: &OwnedFd) -> io::Result<bool> {
        let inode = u32::try_from(fstat(socket)?.st_ino).map_err(io::Error::other)?;
        send(&self.0, &question(inode), SendFlags::empty())?;
        let mut answer = [0; 512];
        let (len, _) = recv(&self.0, &mut answer[..], RecvFlags::empty())?;
        peer(&answer[..len])
            .map(|inode| inode == 0)
            .ok_or_else(|| io::ErrorKind::Unsupported.into())
    }
}

/// Asks for the peer of the Unix socket with this inode.
fn question(inode: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + REQUEST);
    bytes.extend(40_u32.to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    bytes.extend([0; 8]);
    // The family (AF_UNIX).
    bytes.extend([1, 0, 0, 0]);
    // Sockets in any state.
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend(inode.to_ne_bytes());
    bytes.extend(UDIAG_SHOW_PEER.to_ne_bytes());
    // No cookie.
    bytes.extend([0xff; 8]);
    bytes
}

/// Returns the inode of the peer, which is 0 for a socket without an owner. `None`: the answer has none.
fn peer(answer: &[u8]) -> Option<u32> {
    let u16_at = |at: usize| Some(u16::from_ne_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_ne_bytes(answer.get(at..at + 4)?.try_into().ok()?));
    if u16_at(4)? != SOCK_DIAG_BY_FAMILY {
        return None;
    }
    let mut at = HEADER + FIXED;
    loop {
        let (len, kind) = (usize::from(u16_at(at)?), u16_at(at + 2)?);
        if kind == UNIX_DIAG_PEER && len == 8 {
            return u32_at(at + 4);
        }
        at += len.max(4).next_multiple_of(4);
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{Shutdown, shutdown, socketpair};

    use super::*;

    #[test]
    fn a_peer_that_is_shut_down_is_not_closed() {
        let pair = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        );
        let (ours, theirs) = pair.expect("two sockets");
        let peers = Peers::new().expect("a socket");
        // A kernel without unix_diag tells nothing.
        let Ok(closed) = peers.is_closed(&ours) else {
            return;
        };
        assert!(!closed);
        shutdown(&theirs, Shutdown::Both).expect("shut it down");
        assert!(!peers.is_closed(&ours).expect("an answer"));
        let other = theirs.try_clone().expect("a descriptor");
        drop(theirs);
        assert!(!peers.is_closed(&ours).expect("an answer"));
        drop(other);
        assert!(peers.is_closed(&ours).expect("an answer"));
    }

    #[test]
    fn answers_without_a_peer_give_no_inode() {
        let mut answer = question(7);
        for len in 0..answer.len() {
            assert_eq!(peer(&answer[..len]), None);
        }
        answer.truncate(HEADER + FIXED);
        answer.extend([0; 4]);
        assert_eq!(peer(&answer), None);
    }
}
