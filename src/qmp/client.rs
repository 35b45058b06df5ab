//! A connection: the input up to the next message, and the output that is not sent yet.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::event::PollFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send};
use serde_json::{Map, Value};

use super::json::{Framer, SyntaxError, to_line};
use super::session::Session;

/// Maximum number of descriptors taken with one message, as in QEMU.
const MAX_PASSED: usize = 16;
/// Bytes received at a time.
const CHUNK: usize = 16 << 10;
/// Above this amount of unsent output, no further message is taken from the client.
const ENOUGH_OUTPUT: usize = 64 << 10;
/// Above this amount of unsent output, the next event ends the connection.
const MAX_OUTPUT: usize = 1 << 20;

/// A connected client.
#[derive(Debug)]
pub(super) struct Client {
    /// Identifies the client; never reused.
    pub(super) number: u64,
    pub(super) session: Session,
    /// The `id` of the command that still needs an answer. The inner `None` is a command without `id`.
    pub(super) awaited: Option<Option<Value>>,
    socket: UnixStream,
    framer: Framer,
    /// Received bytes; those from `next` on have not been parsed yet.
    input: Vec<u8>,
    next: usize,
    output: VecDeque<u8>,
    /// The client will send nothing more.
    ended: bool,
    /// Nothing can be sent any more.
    broken: bool,
    /// An event did not fit into the output.
    overrun: bool,
}

impl Client {
    pub(super) fn new(number: u64, socket: UnixStream) -> Self {
        Self {
            number,
            session: Session::default(),
            awaited: None,
            socket,
            framer: Framer::default(),
            input: Vec::new(),
            next: 0,
            output: VecDeque::new(),
            ended: false,
            broken: false,
            overrun: false,
        }
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Returns the events to wait for, or `None` if the client cannot cause any.
    pub(super) fn interest(&self) -> Option<PollFlags> {
        let mut interest = PollFlags::empty();
        if !self.output.is_empty() {
            interest |= PollFlags::OUT;
        }
        if self.may_receive() {
            interest |= PollFlags::IN;
        }
        // If the client has hung up, a poll for no events would return at once, again and again.
        (!(self.broken && interest.is_empty())).then_some(interest)
    }

    /// Handles the events that have occurred.
    pub(super) fn occurred(&mut self, events: PollFlags) {
        if events.intersects(PollFlags::HUP | PollFlags::ERR) {
            self.break_off();
        }
        if self.may_receive() && events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            self.receive();
        }
    }

    /// Returns whether the next message may be taken.
    fn takes_input(&self) -> bool {
        self.awaited.is_none() && self.output.len() < ENOUGH_OUTPUT
    }

    /// Returns whether more may be received: everything received so far has been parsed, and the client may send more.
    fn may_receive(&self) -> bool {
        self.takes_input() && !self.ended && self.next == self.input.len()
    }

    /// Returns whether there is input to handle without waiting.
    pub(super) fn has_work(&self) -> bool {
        self.takes_input() && (self.next < self.input.len() || (self.broken && !self.ended))
    }

    /// Returns whether the connection has ended and nothing is left to do for it.
    pub(super) fn is_over(&self) -> bool {
        let done = self.ended && self.awaited.is_none() && self.next == self.input.len();
        self.overrun || (done && self.output.is_empty())
    }

    pub(super) fn has_hung_up(&self) -> bool {
        self.broken
    }

    pub(super) fn has_overrun(&self) -> bool {
        self.overrun
    }

    /// Receives some bytes, and the descriptors that come with them.
    fn receive(&mut self) {
        self.input.resize(CHUNK, 0);
        self.next = 0;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PASSED))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let mut chunk = [IoSliceMut::new(&mut self.input)];
        let received = recvmsg(&self.socket, &mut chunk, &mut control, flags);
        let passed: VecDeque<_> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect();
        if !passed.is_empty() {
            self.session.passed = passed;
        }
        let length = match received.map_err(|error| io::Error::from(error).kind()) {
            Ok(message) => {
                self.ended = message.bytes == 0;
                message.bytes
            }
            Err(ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
            Err(_) => {
                self.ended = true;
                0
            }
        };
        self.input.truncate(length);
    }

    /// Takes the next complete message, if the client may have another command answered.
    pub(super) fn next_message(&mut self) -> Option<Result<Map<String, Value>, SyntaxError>> {
        if !self.takes_input() {
            return None;
        }
        if self.broken && self.may_receive() {
            self.receive();
        }
        while let Some(&byte) = self.input.get(self.next) {
            self.next += 1;
            if let Some(message) = self.framer.push(byte) {
                return Some(message);
            }
        }
        // An idle client keeps no buffer.
        self.input = Vec::new();
        self.next = 0;
        None
    }

    /// Queues a greeting or an answer.
    pub(super) fn queue(&mut self, message: &Value) {
        if !self.broken {
            self.output.extend(to_line(message));
        }
    }

    /// Queues an event, if the client has negotiated. If the client does not read, ends the connection.
    pub(super) fn queue_event(&mut self, line: &[u8]) {
        if !self.session.negotiated || self.broken {
            return;
        }
        match self.output.len() + line.len() > MAX_OUTPUT {
            true => self.overrun = true,
            false => self.output.extend(line),
        }
    }

    /// Sends as much as the socket takes.
    pub(super) fn send(&mut self) {
        while !self.output.is_empty() {
            let (front, _) = self.output.as_slices();
            match send(&self.socket, front, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(length) => drop(self.output.drain(..length)),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                Err(_) => return self.break_off(),
            }
        }
        // An idle client keeps no buffer.
        self.output = VecDeque::new();
    }

    pub(super) fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Notes that the client has hung up. Messages that it sent before are still executed.
    fn break_off(&mut self) {
        self.broken = true;
        self.output = VecDeque::new();
    }
}
