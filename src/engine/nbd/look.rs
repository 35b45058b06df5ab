//! Reads over a connection before an IOThread has it. On the thread that opens the disk, which waits with a limit.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::SendFlags;

use super::lost::Lost;
use crate::interrupt;
use crate::nbd::{
    Command, Connected, Coverage, Decoded, Event, Expected, HEADER_LEN_MAX, ProtocolError, Request, decode,
    error_of,
};

/// The time after which a wait looks whether the process has to end.
const GLANCE: Duration = Duration::from_millis(100);
/// The number of the command. Those of an IOThread are larger.
const NUMBER: u64 = 0;

/// The reason why nothing was read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unread {
    /// The connection can still be used.
    #[error("the server cannot read it: {0}")]
    Refused(io::Error),
    #[error("the server does not answer")]
    Silent,
    #[error("{}", interrupt::TOLD)]
    Interrupted,
    /// The connection is of no use.
    #[error("the connection is lost: {0}")]
    Lost(#[from] Lost),
}

impl From<ProtocolError> for Unread {
    fn from(error: ProtocolError) -> Self {
        Self::Lost(error.into())
    }
}

impl From<Errno> for Unread {
    fn from(error: Errno) -> Self {
        Self::Lost(io::Error::from(error).into())
    }
}

/// Reads a range, until `end` at the latest.
///
/// # Errors
/// The server cannot, or does not answer, the connection is lost, or a signal ends the process.
pub(super) fn read(connected: &Connected, offset: u64, len: u32, end: Instant) -> Result<Vec<u8>, Unread> {
    let (export, mut answer) = (&connected.export, Answer::new(&connected.socket, end));
    let mut header = [0; HEADER_LEN_MAX];
    let request = Request {
        command: Command::Read {
            whole: export.has_df(),
        },
        cookie: NUMBER,
        offset,
        len,
    };
    let used = request.encode(export.replies, &mut header);
    send(&connected.socket, &header[..used], end)?;
    let (mut data, mut received, mut failed) = (vec![0; len as usize], Coverage::default(), None);
    let expected = Expected {
        read: Some((offset, len)),
    };
    loop {
        let find = |number| (number == NUMBER).then_some(expected);
        let (used, event) = match decode(&answer.bytes[answer.done..], export.replies, find)? {
            Decoded::More(needed) => {
                answer.fill(needed)?;
                continue;
            }
            Decoded::Header(used, event) => (used, event),
        };
        let last = match event {
            Event::Data { at, len, last, .. } => {
                received.add(at, len)?;
                let payload = answer.payload(used, len)?;
                data[at as usize..][..len as usize].copy_from_slice(payload);
                last
            }
            Event::Hole { at, len, last, .. } => {
                answer.payload(used, 0)?;
                received.add(at, len)?;
                last
            }
            Event::Error {
                error, skip, last, ..
            } => {
                answer.payload(used, skip)?;
                failed = Some(error);
                last
            }
            Event::Done { .. } => true,
        };
        if let Some(error) = failed.filter(|_| last) {
            let error = io::Error::from_raw_os_error(error_of(error));
            return Err(Unread::Refused(error));
        }
        if last && received.bytes() < len {
            return Err(ProtocolError::Amount.into());
        }
        if last {
            return Ok(data);
        }
    }
}

/// An answer, as far as it has come.
struct Answer<'a> {
    socket: &'a OwnedFd,
    end: Instant,
    bytes: Vec<u8>,
    /// Bytes at the start that are done with.
    done: usize,
}

impl<'a> Answer<'a> {
    fn new(socket: &'a OwnedFd, end: Instant) -> Self {
        Self {
            socket,
            end,
            bytes: Vec::new(),
            done: 0,
        }
    }

    /// Receives until there are `needed` bytes, and no more.
    fn fill(&mut self, needed: usize) -> Result<(), Unread> {
        self.bytes.drain(..std::mem::take(&mut self.done));
        let mut len = self.bytes.len();
        self.bytes.resize(needed.max(len), 0);
        while len < needed {
            wait(self.socket, PollFlags::IN, self.end)?;
            match rustix::io::read(self.socket, &mut self.bytes[len..]) {
                Ok(0) => return Err(Lost::Closed.into()),
                Ok(more) => len += more,
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Returns the `len` bytes after a header of `header` bytes. Both are done with then.
    fn payload(&mut self, header: usize, len: u32) -> Result<&[u8], Unread> {
        let whole = header + len as usize;
        self.fill(whole)?;
        self.done = whole;
        Ok(&self.bytes[header..whole])
    }
}

fn send(socket: &OwnedFd, mut bytes: &[u8], end: Instant) -> Result<(), Unread> {
    while !bytes.is_empty() {
        wait(socket, PollFlags::OUT, end)?;
        match rustix::net::send(socket, bytes, SendFlags::NOSIGNAL) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Waits until the socket is ready.
fn wait(socket: &OwnedFd, events: PollFlags, end: Instant) -> Result<(), Unread> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if interrupt::is_requested() {
            return Err(Unread::Interrupted);
        }
        // A server that sends without end gets no more time either.
        if left.is_zero() {
            return Err(Unread::Silent);
        }
        match poll(
            &mut [PollFd::new(socket, events)],
            left.min(GLANCE).try_into().ok().as_ref(),
        ) {
            Ok(ready) if ready > 0 => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
