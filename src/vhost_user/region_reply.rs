//! The reply to GET_INFLIGHT_FD.
//!
//! The `vhost` crate sends its structure as it lies in memory. That has four bytes of padding, which are not initialized:
//! the frontend would see what the stack held before.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::virtqueue::RegionLayout;

const GET_INFLIGHT_FD: u32 = 31;
/// Flags: version 1, and that the message is a reply.
const REPLY: u32 = 1 | 1 << 2;
/// Length of the payload, with the padding.
const PAYLOAD_LEN: u32 = 24;

/// Sends the description of a new in-flight region, and its file.
///
/// # Errors
/// The frontend has left, or the socket has no room for the reply.
pub(super) fn send(socket: &UnixStream, layout: RegionLayout, file: &File) -> io::Result<()> {
    let message = encode(layout);
    let sent = socket.send_with_fd(&message[..], file.as_raw_fd())?;
    if sent < message.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(())
}

fn encode(layout: RegionLayout) -> Vec<u8> {
    let header = [GET_INFLIGHT_FD, REPLY, PAYLOAD_LEN];
    let places = [layout.size, layout.offset];
    let numbers = [layout.queues, layout.queue_size, 0, 0];
    [
        header.map(u32::to_ne_bytes).concat(),
        places.map(u64::to_ne_bytes).concat(),
        numbers.map(u16::to_ne_bytes).concat(),
    ]
    .concat()
}
