//! The messages between the daemon and its helper: JSON in packets, with descriptors beside it.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Maximum length of a message. A path has at most 4 KiB, and JSON makes six bytes of one at most.
const MAX: usize = 64 << 10;
/// Maximum number of descriptors with a message.
const MAX_FDS: usize = 2;

/// A request of the daemon. Each but the last is answered, in order.
#[derive(Debug, Deserialize, Serialize)]
pub(super) enum Request {
    /// Open an image.
    Open {
        directory: usize,
        rest: PathBuf,
        file: FileRequest,
    },
    /// Make a socket that listens. `number` identifies it in [`Request::Remove`].
    Listen {
        directory: usize,
        rest: PathBuf,
        number: u64,
        socket: SocketRequest,
    },
    /// Remove the file of a socket, if it is still the same.
    Remove { number: u64 },
    /// Remove the files of all sockets that are left, and end.
    End,
}

/// How an image is opened.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct FileRequest {
    /// Open the image for writing as well.
    pub(crate) writable: bool,
    /// Open it for reading only if it cannot be opened for writing.
    pub(crate) or_read_only: bool,
    /// Bypass the page cache (O_DIRECT).
    pub(crate) direct: bool,
}

/// How a socket is made.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct SocketRequest {
    /// The address to bind the socket to, which tools show.
    pub(crate) path: PathBuf,
    /// The permission bits of its file.
    pub(crate) mode: libc::mode_t,
    /// The group of its file; that of the process by default.
    pub(crate) group: Option<libc::gid_t>,
}

/// The helper's answer, with its descriptors.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The image, and if it is writable through the page cache, the same file open for O_DIRECT, if that is possible.
    File(OwnedFd, Option<OwnedFd>),
    /// The socket, which listens.
    Socket(OwnedFd),
    /// A socket's file was removed, as its owner has asked.
    Removed,
    Refused(Refusal),
}

/// The reason why a request is refused.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) enum Refusal {
    /// A symbolic link or `..` leads out of the directory.
    LeadsOut,
    /// The file is neither a regular file nor a block device.
    Kind,
    /// A system call has failed with this error.
    Os(i32),
    /// A sentence.
    Told(String),
}

/// The part of an answer that is not descriptors.
#[derive(Debug, Deserialize, Serialize)]
pub(super) enum Outcome {
    /// The helper is confined and waits for requests, or cannot.
    Ready(Result<(), String>),
    File,
    Socket,
    /// The socket with this number has no file any more.
    Removed(u64),
    Refused(Refusal),
}

/// Sends a message. With `DONTWAIT` it fails instead of waiting for room.
pub(super) fn send(
    socket: BorrowedFd<'_>,
    message: &impl Serialize,
    fds: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let flags = flags | SendFlags::NOSIGNAL;
    loop {
        match sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, flags) {
            Err(rustix::io::Errno::INTR) => {}
            result => return Ok(result.map(drop)?),
        }
    }
}

/// Receives a message with its descriptors, or `None` at the end.
///
/// # Errors
/// The message is not one of this type, or the socket fails: `WouldBlock` if nothing has come and `flags` say so.
pub(super) fn receive<T: DeserializeOwned>(
    socket: impl AsFd,
    flags: RecvFlags,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let message = loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags) {
            Err(rustix::io::Errno::INTR) => {}
            result => break result?,
        }
    };
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fds = rights.flatten().collect();
    if message.bytes == 0 {
        return Ok(None);
    }
    if message.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(Some((serde_json::from_slice(&bytes[..message.bytes])?, fds)))
}
