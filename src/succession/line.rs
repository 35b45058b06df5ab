//! Frames on a stream socket: a header, a text, and file descriptors.
//!
//! Descriptors follow the text in groups, each with a byte of its own, because the kernel limits how many go at once.
//! Nothing waits beyond a deadline.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, recvmsg, sendmsg, shutdown,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use smallvec::SmallVec;

use super::Bundle;

/// First bytes of each frame.
const MAGIC: [u8; 4] = *b"vubt";
/// Length of the header: the magic bytes, the length of the text, and the number of descriptors.
const HEADER_LEN: usize = 12;
/// Maximum length of the text.
const TEXT_MAX: usize = 64 << 20;
/// Maximum number of descriptors with a frame.
const FDS_MAX: usize = 1 << 20;
/// Number of descriptors that go at once. The kernel allows 253.
const GROUP: usize = 200;
/// The time after which a wait looks whether it must end.
const GLANCE: Duration = Duration::from_millis(100);

/// One end of the line.
#[derive(Debug)]
pub(crate) struct Line {
    stream: UnixStream,
    /// Becomes readable when all waits must end.
    interrupt: Option<Arc<OwnedFd>>,
    /// Returns true when all waits must end. A wait asks from time to time.
    must_end: fn() -> bool,
}

/// The reason why a frame cannot be sent or received.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LineError {
    /// The other process has ended or has closed the line.
    #[error("the other process has ended, or has closed the line")]
    Closed,
    /// The other process did not answer in time.
    #[error("the other process has not answered in time")]
    Late,
    /// This process is asked to end.
    #[error("this process is asked to end")]
    Interrupted,
    /// The bytes that have come are not a frame.
    #[error("the other process does not speak this protocol")]
    Foreign,
    /// The text is not one that is expected.
    #[error("the message is not understood: {0}")]
    Text(serde_json::Error),
    /// This process has no room for the descriptors.
    #[error(
        "this process has no room for the file descriptors: raise its limit of open files (ulimit -n, LimitNOFILE=)"
    )]
    NoRoom,
    /// The kernel has not given the descriptors to this process.
    #[error(
        "the kernel does not let this process receive all file descriptors: a security module (SELinux, AppArmor) may \
         forbid it"
    )]
    Withheld,
    /// The other process has not sent as many descriptors as it has announced.
    #[error("the other process has announced {announced} file descriptors, and {received} have come")]
    Missing { announced: usize, received: usize },
    /// The kernel keeps no more descriptors for processes that have not received them yet.
    #[error(
        "too many file descriptors are on their way to other processes: raise this process's limit of open files (ulimit \
         -n, LimitNOFILE=)"
    )]
    OnTheirWay,
    /// The socket fails.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<Errno> for LineError {
    fn from(error: Errno) -> Self {
        match error {
            Errno::PIPE | Errno::CONNRESET => Self::Closed,
            Errno::TOOMANYREFS => Self::OnTheirWay,
            error => Self::Io(error.into()),
        }
    }
}

type Result<T> = std::result::Result<T, LineError>;

impl Line {
    /// Uses a connected stream socket.
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            interrupt: None,
            must_end: || false,
        }
    }

    /// Stops waiting soon after `must_end` begins to return true.
    pub(crate) fn ended_by(self, must_end: fn() -> bool) -> Self {
        Self { must_end, ..self }
    }

    /// Stops waiting as soon as `interrupt` is readable.
    pub(crate) fn interrupted_by(self, interrupt: Arc<OwnedFd>) -> Self {
        Self {
            interrupt: Some(interrupt),
            ..self
        }
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// See [`LineError`]. The frame may have been sent in part, so the line cannot be used any more.
    pub(crate) fn send(&self, message: &impl Serialize, bundle: &Bundle, deadline: Instant) -> Result<()> {
        let text = serde_json::to_vec(message).map_err(LineError::Text)?;
        let fds = bundle.fds();
        let mut frame = MAGIC.to_vec();
        for number in [text.len(), fds.len()] {
            let number = u32::try_from(number).map_err(io::Error::other)?;
            frame.extend(number.to_le_bytes());
        }
        frame.extend(text);
        let mut rest = &frame[..];
        while !rest.is_empty() {
            let sent = self.send_once(rest, &[], deadline)?;
            rest = &rest[sent..];
        }
        for group in fds.chunks(GROUP) {
            self.send_once(&[0], group, deadline)?;
        }
        Ok(())
    }

    fn send_once(&self, bytes: &[u8], fds: &[BorrowedFd<'_>], deadline: Instant) -> Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(GROUP))];
        loop {
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(fds));
            }
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, flags) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, deadline)?,
                result => return Ok(result?),
            }
        }
    }

    /// Receives a frame.
    ///
    /// # Errors
    /// See [`LineError`].
    pub(crate) fn receive<T: DeserializeOwned>(&self, deadline: Instant) -> Result<(T, Bundle)> {
        let mut header = [0; HEADER_LEN];
        self.fill(&mut header, deadline)?;
        let number = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| header[at + i])) as usize;
        let (len, fds) = (number(4), number(8));
        if header[..4] != MAGIC || len > TEXT_MAX || fds > FDS_MAX {
            return Err(LineError::Foreign);
        }
        let mut text = vec![0; len];
        self.fill(&mut text, deadline)?;
        let mut received = Vec::new();
        while received.len() < fds {
            let expected = GROUP.min(fds - received.len());
            let (_, group) = self.receive_once(&mut [0], deadline)?;
            let is_complete = group.len() == expected;
            received.extend(group);
            if !is_complete {
                let (announced, received) = (fds, received.len());
                return Err(LineError::Missing { announced, received });
            }
        }
        let message = serde_json::from_slice(&text).map_err(LineError::Text)?;
        Ok((message, received.into()))
    }

    fn fill(&self, mut bytes: &mut [u8], deadline: Instant) -> Result<()> {
        while !bytes.is_empty() {
            let (len, _) = self.receive_once(bytes, deadline)?;
            bytes = &mut bytes[len..];
        }
        Ok(())
    }

    fn receive_once(&self, bytes: &mut [u8], deadline: Instant) -> Result<(usize, Vec<OwnedFd>)> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(GROUP))];
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        loop {
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let received = match recvmsg(&self.stream, &mut [IoSliceMut::new(bytes)], &mut control, flags) {
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => {
                    self.wait(PollFlags::IN, deadline)?;
                    continue;
                }
                result => result?,
            };
            let rights = control.drain().filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            });
            let fds: Vec<OwnedFd> = rights.flatten().collect();
            if received.bytes == 0 {
                return Err(LineError::Closed);
            }
            if received.flags.contains(ReturnFlags::CTRUNC) {
                // While those that have come are still open.
                return Err(match self.stream.try_clone() {
                    Err(_) => LineError::NoRoom,
                    Ok(_) => LineError::Withheld,
                });
            }
            return Ok((received.bytes, fds));
        }
    }

    fn wait(&self, events: PollFlags, deadline: Instant) -> Result<()> {
        self.wait_beside(events, None, deadline).map(drop)
    }

    /// Waits until something has come, or `other` is readable. Returns whether something has come.
    ///
    /// # Errors
    /// The deadline has passed, or this process is asked to end.
    pub(crate) fn wait_for_either(&self, other: BorrowedFd<'_>, deadline: Instant) -> Result<bool> {
        self.wait_beside(PollFlags::IN, Some(other), deadline)
    }

    fn wait_beside(
        &self,
        events: PollFlags,
        other: Option<BorrowedFd<'_>>,
        deadline: Instant,
    ) -> Result<bool> {
        let interrupt = self.interrupt.as_ref().map(AsFd::as_fd);
        let mut polled: SmallVec<[PollFd<'_>; 3]> = SmallVec::new();
        polled.push(PollFd::from_borrowed_fd(self.stream.as_fd(), events));
        let others = interrupt.into_iter().chain(other);
        polled.extend(others.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        loop {
            if (self.must_end)() {
                return Err(LineError::Interrupted);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let glance: Timespec = left.min(GLANCE).try_into().map_err(io::Error::other)?;
            match poll(&mut polled, Some(&glance)) {
                Ok(0) if left > GLANCE => {}
                Ok(0) => return Err(LineError::Late),
                Ok(_) if interrupt.is_some() && !polled[1].revents().is_empty() => {
                    return Err(LineError::Interrupted);
                }
                Ok(_) => return Ok(!polled[0].revents().is_empty()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Ends the line in both directions. What the other process has sent before can still be received; it can send
    /// nothing from now on.
    pub(crate) fn close(&self) {
        // Fails only if the other end has gone.
        let _ = shutdown(&self.stream, Shutdown::Both);
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    fn pair() -> (Line, Line) {
        let (one, other) = UnixStream::pair().unwrap();
        (Line::new(one), Line::new(other))
    }

    #[test]
    fn large_frames_with_many_descriptors_arrive() {
        let (one, other) = pair();
        let text = "x".repeat(1 << 20);
        let sender = std::thread::spawn({
            let text = text.clone();
            move || {
                let mut bundle = Bundle::default();
                for place in 0..450 {
                    assert_eq!(bundle.add(io::stdin()).unwrap(), place);
                }
                one.send(&text, &bundle, soon()).unwrap();
                one.send(&"end", &Bundle::default(), soon()).unwrap();
                one
            }
        });
        let (got, mut bundle): (String, _) = other.receive(soon()).unwrap();
        assert!(got == text && (0..450).all(|place| bundle.take(place).is_ok()));
        assert_eq!(other.receive::<String>(soon()).unwrap().0, "end");
        drop(sender.join().unwrap());
        assert!(matches!(other.receive::<String>(soon()), Err(LineError::Closed)));
    }

    #[test]
    fn what_was_sent_before_a_close_arrives() {
        let (one, other) = pair();
        one.send(&1, &Bundle::default(), soon()).unwrap();
        other.close();
        assert_eq!(other.receive::<u8>(soon()).unwrap().0, 1);
        let later = one.send(&2, &Bundle::default(), soon());
        assert!(matches!(later, Err(LineError::Closed)));
        assert!(matches!(other.receive::<u8>(soon()), Err(LineError::Closed)));
    }

    #[test]
    fn a_silent_or_foreign_process_is_not_waited_for() {
        let (one, other) = pair();
        let late = other.receive::<u8>(Instant::now());
        assert!(matches!(late, Err(LineError::Late)));
        (&one.stream).write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert!(matches!(other.receive::<u8>(soon()), Err(LineError::Foreign)));
    }
}
