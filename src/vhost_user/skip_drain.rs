//! GET_VRING_BASE_SKIP_DRAIN (newer than QEMU 11.1): stops a ring like GET_VRING_BASE, but leaves its requests in flight
//! for the backend that gets the in-flight region.
//!
//! The `vhost` crate does not know this message. Control thread only.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

/// Number of the request.
pub(super) const REQUEST: u32 = 45;
/// VHOST_USER_PROTOCOL_F_GET_VRING_BASE_SKIP_DRAIN, which the crate does not know either.
pub(super) const FEATURE: u64 = 1 << 23;
/// Length of the payload of request and reply: the ring's index, and its base.
pub(super) const PAYLOAD_LEN: u32 = 8;

/// Flags: version 1, and that the message is a reply.
const REPLY: u32 = 1 | 1 << 2;

/// Reads the request, which has arrived as a whole. Returns the index of the ring.
pub(super) fn read(mut socket: &UnixStream) -> io::Result<u32> {
    let mut message = [0; 20];
    socket.read_exact(&mut message)?;
    let [index, _base] = [12, 16].map(|at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|i| message[at + i])));
    Ok(index)
}

/// Sends the reply. The socket has room for it.
pub(super) fn reply(mut socket: &UnixStream, index: u32, base: u16) -> io::Result<()> {
    let words = [REQUEST, REPLY, PAYLOAD_LEN, index, base.into()];
    socket.write_all(words.map(u32::to_ne_bytes).as_flattened())
}
