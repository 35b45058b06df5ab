//! Waits until a whole message has arrived and there is room for its answer.
//!
//! The `vhost` crate reads a payload with one call, and blocks when it must wait. But a frontend may send a message in
//! any number of parts, or never finish it. So the crate is called only when neither its reads nor its writes will
//! block. The wait ends at once when the server is stopped.

use std::io::{self, IoSliceMut};
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::ioctl_fionread;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::skip_drain;
use crate::sys::socket::set_peek_offset;

/// Length of the header before each payload: request, flags, size.
const HEADER_LEN: usize = 12;
/// Maximum payload length. The crate refuses messages with a larger length in their header.
const MAX_PAYLOAD: usize = 4096;
/// Maximum number of descriptors per message. If a message has more, the crate loses its place in the stream.
const MAX_FDS: usize = 32;
/// Event data that identify the descriptors in the epoll set.
const SOCKET: u64 = 0;
const STOP: u64 = 1;
const LISTENER: u64 = 2;
/// Request numbers, and the bits of the flags.
const SET_MEM_TABLE: u32 = 5;
const SET_BACKEND_REQ_FD: u32 = 21;
const SET_CONFIG: u32 = 25;
const NEED_REPLY: u32 = 1 << 3;
const VERSION: u32 = 1;

/// The next event on a connection.
#[derive(Debug)]
pub(super) enum Next {
    /// A whole message is in the socket, not read yet.
    Message(Preview),
    /// Another frontend has connected, and waits until this one leaves.
    Another,
    /// The frontend left, or the server was stopped.
    End,
}

/// The facts about a message that are needed before the crate reads it.
#[derive(Debug)]
pub(super) struct Preview {
    request: u32,
    flags: u32,
    size: usize,
    /// Duplicates of the descriptors that come with the message.
    fds: Vec<OwnedFd>,
}

impl Preview {
    /// True if the frontend asks for an acknowledgement of this message.
    pub(super) fn asks(&self) -> bool {
        self.flags & NEED_REPLY != 0
    }

    /// True if the crate reads and answers this message even if its payload is invalid, so that the connection need not
    /// end.
    pub(super) fn is_answered(&self) -> bool {
        let answered = match self.request {
            SET_MEM_TABLE => true,
            SET_CONFIG => self.fds.is_empty(),
            _ => false,
        };
        answered && self.size > 0 && self.flags & !NEED_REPLY == VERSION
    }

    /// True if this is a well-formed GET_VRING_BASE_SKIP_DRAIN, which the crate does not know.
    pub(super) fn is_skip_drain(&self) -> bool {
        self.request == skip_drain::REQUEST
            && u32::try_from(self.size) == Ok(skip_drain::PAYLOAD_LEN)
            && self.fds.is_empty()
            && self.flags & !NEED_REPLY == VERSION
    }

    /// Returns the backend channel's socket, if this message carries one. The crate takes it and does not expose it.
    pub(super) fn into_backend_socket(self) -> Option<OwnedFd> {
        self.fds
            .into_iter()
            .next()
            .filter(|_| self.request == SET_BACKEND_REQ_FD)
    }
}

/// The reason why a connection cannot continue.
#[derive(Debug, thiserror::Error)]
pub(super) enum InboxError {
    /// The message has more descriptors than any message needs, or this process has no room for them.
    #[error("message with more than {MAX_FDS} file descriptors, or this process has too few free ones")]
    TooManyFds,
    /// The frontend left in the middle of a message.
    #[error("connection closed after {0} bytes of an unfinished message")]
    Cut(usize),
    /// The socket cannot be read or waited for.
    #[error("cannot receive from the socket")]
    Io(#[from] io::Error),
}

/// The receiving end of a connection.
#[derive(Debug)]
pub(super) struct Inbox<'a> {
    socket: BorrowedFd<'a>,
    /// Reports changes of the socket since the last wait, the stop, and new connections.
    news: Epoll,
    /// The frontend will send nothing more.
    ended: bool,
    stopped: bool,
    /// Another frontend has connected.
    another: bool,
}

impl<'a> Inbox<'a> {
    /// Creates the receiving end of `socket`. It ends when `stop` becomes readable, and reports new connections to
    /// `listener`.
    pub(super) fn new(
        socket: BorrowedFd<'a>,
        stop: &impl AsRawFd,
        listener: Option<BorrowedFd<'_>>,
    ) -> io::Result<Self> {
        let news = Epoll::new()?;
        let add = |fd, events, data| news.ctl(ControlOperation::Add, fd, EpollEvent::new(events, data));
        let events = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        add(socket.as_raw_fd(), events, SOCKET)?;
        add(stop.as_raw_fd(), EventSet::IN, STOP)?;
        if let Some(listener) = listener {
            let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
            add(listener.as_raw_fd(), events, LISTENER)?;
        }
        Ok(Self {
            socket,
            news,
            ended: false,
            stopped: false,
            another: false,
        })
    }

    /// Goes on after the end, because the server was only woken up.
    pub(super) fn go_on(&mut self) {
        self.stopped = false;
    }

    /// Waits for a whole message, another frontend, or the end.
    ///
    /// # Errors
    /// The connection ended within a message, the message has too many descriptors, or the socket failed.
    pub(super) fn next(&mut self) -> Result<Next, InboxError> {
        while !self.stopped {
            if mem::take(&mut self.another) && !self.ended {
                return Ok(Next::Another);
            }
            // `ended` is read first, so that data that arrived before the end is still seen.
            let ended = self.ended;
            let held = self.held()?;
            match self.whole(held)?.filter(|&len| held >= len) {
                Some(len) if self.has_room() => return Ok(Next::Message(self.preview(len)?)),
                Some(_) => self.wait()?,
                None if !ended => self.wait()?,
                None if held == 0 => return Ok(Next::End),
                None => return Err(InboxError::Cut(held)),
            }
        }
        Ok(Next::End)
    }

    /// Returns the length of the current message, or `None` if its header is incomplete.
    fn whole(&self, held: usize) -> io::Result<Option<usize>> {
        if held < HEADER_LEN {
            return Ok(None);
        }
        let mut header = [0; HEADER_LEN];
        self.peek(&mut header)?;
        let [.., a, b, c, d] = header;
        let payload = usize::try_from(u32::from_ne_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        // The crate refuses longer messages without reading their payload.
        let payload = if payload > MAX_PAYLOAD { 0 } else { payload };
        Ok(Some(HEADER_LEN + payload))
    }

    /// Peeks at the whole message, because its descriptors may come with any part.
    fn preview(&self, len: usize) -> Result<Preview, InboxError> {
        let mut message = [0; HEADER_LEN + MAX_PAYLOAD];
        let (fds, complete) = self.peek(&mut message[..len])?;
        if !complete || fds.len() > MAX_FDS {
            return Err(InboxError::TooManyFds);
        }
        let word = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|i| message[at + i]));
        Ok(Preview {
            request: word(0),
            flags: word(4),
            size: len - HEADER_LEN,
            fds,
        })
    }

    /// Copies the next bytes, which must have arrived, without consuming them. Returns duplicates of their descriptors,
    /// and whether these are complete.
    fn peek(&self, buf: &mut [u8]) -> io::Result<(Vec<OwnedFd>, bool)> {
        // Each read ends after descriptors. The peek offset, which the kernel advances, lets the next read continue.
        set_peek_offset(self.socket, 0)?;
        let (mut done, mut fds, mut complete) = (0, Vec::new(), true);
        while done < buf.len() {
            let (len, more, all) = peek_once(self.socket, &mut buf[done..])?;
            if len == 0 {
                break;
            }
            done += len;
            fds.extend(more);
            complete &= all;
        }
        set_peek_offset(self.socket, -1)?;
        Ok((fds, complete))
    }

    /// Returns the number of bytes in the socket.
    fn held(&self) -> io::Result<usize> {
        usize::try_from(ioctl_fionread(self.socket)?).map_err(io::Error::other)
    }

    /// True if an answer of any length can be sent without blocking: most of the socket's buffer is free.
    fn has_room(&self) -> bool {
        let mut polled = [PollFd::from_borrowed_fd(self.socket, PollFlags::OUT)];
        let no_wait = Timespec::default();
        matches!(poll(&mut polled, Some(&no_wait)), Ok(1))
    }

    /// Sleeps until something changes.
    fn wait(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::default(); 3];
        let count = match self.news.wait(-1, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        let end = EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR;
        for event in &events[..count] {
            match event.data() {
                STOP => self.stopped = true,
                LISTENER => self.another = true,
                _ => self.ended |= event.event_set().intersects(end),
            }
        }
        Ok(())
    }
}

/// Peeks at bytes up to and including the next ones with descriptors. Returns the number of bytes, the descriptors, and
/// whether these are complete.
fn peek_once(socket: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>, bool)> {
    let mut room = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut room);
    let flags = RecvFlags::PEEK | RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = recvmsg(socket, &mut [IoSliceMut::new(buf)], &mut control, flags)?;
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fds = rights.flatten().collect();
    Ok((received.bytes, fds, !received.flags.contains(ReturnFlags::CTRUNC)))
}

#[cfg(test)]
mod tests;
