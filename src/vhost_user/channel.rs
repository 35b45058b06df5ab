//! The channel on which the backend speaks first (BACKEND_REQ), for the one thing that it has to say: the
//! configuration has changed.
//!
//! The `vhost` crate takes the channel's socket and cannot send this message on it, so [`peek`] duplicates the socket
//! before the crate sees it. The control thread sets the channel; any thread may use it.

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::storage::Storage;

/// VHOST_USER_SET_BACKEND_REQ_FD.
const SET_BACKEND_REQ_FD: u32 = 21;
/// VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, protocol version 1, no payload; no reply is wanted.
const CONFIG_CHANGE: [u32; 3] = [2, 1, 0];

/// Bytes of a descriptor in a control message.
const FD_LEN: u32 = 4;

/// The channel to the frontend that is connected, if it has one. Clones are the same channel.
#[derive(Clone, Debug, Default)]
pub struct BackendChannel(Arc<Mutex<Option<File>>>);

impl BackendChannel {
    fn lock(&self) -> MutexGuard<'_, Option<File>> {
        // A panic elsewhere leaves a socket or none.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, socket: Option<OwnedFd>) {
        *self.lock() = socket.map(File::from);
    }

    /// Tells the frontend that the configuration space has changed. Never waits. Any thread.
    ///
    /// Without a frontend that wants to know there is nothing to do: the next one reads the configuration anyway.
    pub fn config_changed(&self) {
        let Some(socket) = &*self.lock() else { return };
        let message = CONFIG_CHANGE.map(u32::to_ne_bytes).concat();
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the message is valid for its length.
        let sent = unsafe { libc::send(socket.as_raw_fd(), message.as_ptr().cast(), message.len(), flags) };
        if sent < 0 {
            // A socket that is full holds such messages already.
            tracing::warn!(error = %io::Error::last_os_error(), "frontend cannot be told of a changed configuration");
        }
    }
}

/// Looks whether the size of a disk has changed, and tells the frontend.
#[derive(Clone, Debug)]
pub struct Resizer {
    storage: Arc<Storage>,
    channel: BackendChannel,
}

impl Resizer {
    pub(super) fn new(storage: Arc<Storage>, channel: BackendChannel) -> Self {
        Self { storage, channel }
    }

    /// Reads the size of the storage again; if it is another one, requests are checked against that from here on, and
    /// the frontend is told. Returns the size in bytes. Any thread.
    ///
    /// # Errors
    /// A size that cannot be had, or that no disk can have; the old one stays.
    pub fn refresh(&self) -> io::Result<u64> {
        let before = self.storage.size();
        let after = self.storage.refresh_size()?;
        if after != before {
            tracing::info!(image = %self.storage.path().display(), before, after, "disk resized");
            self.channel.config_changed();
        }
        Ok(after)
    }
}

/// If the next message on `stream` brings the channel's socket: a duplicate of that socket. Waits for a message.
pub(super) fn peek(stream: &impl AsRawFd) -> Option<OwnedFd> {
    let mut request = [0; 4];
    // SAFETY: the buffer is valid for its length.
    let len = unsafe { libc::recv(stream.as_raw_fd(), request.as_mut_ptr().cast(), 4, libc::MSG_PEEK) };
    if len < 4 || u32::from_ne_bytes(request) != SET_BACKEND_REQ_FD {
        // Whatever it is, the crate deals with it.
        return None;
    }
    peek_fd(stream).ok().flatten()
}

/// A duplicate of the descriptor that comes with the next byte.
fn peek_fd(stream: &impl AsRawFd) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0u8; 1];
    let mut iov = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: byte.len(),
    };
    // Room for one descriptor; the kernel closes its duplicates of any others. Aligned as the header in it needs.
    let mut control = [0u64; 4];
    // SAFETY: a message header of all zeroes is valid, and empty.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: computes a length.
    message.msg_controllen = unsafe { libc::CMSG_LEN(FD_LEN) } as usize;
    let flags = libc::MSG_PEEK | libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    // SAFETY: all pointers in the header are valid for their lengths.
    if unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut message, flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the header was filled in by the kernel.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: null, or a control message in our buffer.
    let Some(&libc::cmsghdr {
        cmsg_level,
        cmsg_type,
        ..
    }) = (unsafe { header.as_ref() })
    else {
        return Ok(None);
    };
    if (cmsg_level, cmsg_type) != (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
        return Ok(None);
    }
    // SAFETY: a message of this type holds at least one descriptor.
    let fd = unsafe { libc::CMSG_DATA(header).cast::<i32>().read_unaligned() };
    // SAFETY: the kernel has just made it for us.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use vmm_sys_util::sock_ctrl_msg::ScmSocket;

    use super::*;

    fn message(request: u32) -> Vec<u8> {
        [request, 1, 0].map(u32::to_ne_bytes).concat()
    }

    #[test]
    fn the_channels_socket_is_duplicated_and_the_message_stays() {
        let (frontend, backend) = UnixStream::pair().unwrap();
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        let sent = message(SET_BACKEND_REQ_FD);
        frontend.send_with_fd(sent.as_slice(), ours.as_raw_fd()).unwrap();
        drop(ours);
        let channel = BackendChannel::default();
        channel.set(peek(&backend));
        channel.config_changed();
        let mut told = [0; 12];
        theirs.read_exact(&mut told).unwrap();
        assert_eq!(told.to_vec(), CONFIG_CHANGE.map(u32::to_ne_bytes).concat());

        let mut received = [0; 12];
        let (len, file) = backend.recv_with_fd(&mut received).unwrap();
        assert_eq!((len, received.to_vec(), file.is_some()), (12, sent, true));
    }

    #[test]
    fn other_messages_and_messages_without_a_descriptor_bring_no_channel() {
        for request in [1, 13, 20, 22] {
            let (frontend, backend) = UnixStream::pair().unwrap();
            frontend
                .send_with_fd(message(request).as_slice(), frontend.as_raw_fd())
                .unwrap();
            assert!(peek(&backend).is_none(), "{request}");
        }
        let (mut frontend, backend) = UnixStream::pair().unwrap();
        frontend.write_all(&message(SET_BACKEND_REQ_FD)).unwrap();
        assert!(peek(&backend).is_none());
        let (frontend, backend) = UnixStream::pair().unwrap();
        drop(frontend);
        assert!(peek(&backend).is_none());
    }

    #[test]
    fn a_frontend_that_does_not_listen_stops_nobody() {
        let (theirs, ours) = UnixStream::pair().unwrap();
        let channel = BackendChannel::default();
        channel.config_changed();
        channel.set(Some(ours.into()));
        (0..100_000).for_each(|_| channel.config_changed());
        drop(theirs);
        channel.config_changed();
    }
}
