//! A connection: reads one request, sends one answer, and closes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

use super::page::Pages;
use super::request::{Answer, HEAD_MAX, answer, page_head};

/// Time for the whole connection.
const LIFE: Duration = Duration::from_secs(10);
/// Time for the client to take the end of the answer, if it goes on sending.
const LINGER: Duration = Duration::from_secs(1);
/// Bytes received at a time.
const CHUNK: usize = 4 << 10;
/// Maximum number of times that something is received. A client that sends single bytes costs no more than that.
const RECEIPTS_MAX: u32 = 64;

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    /// The connection is closed at this time, whatever the client does.
    deadline: Instant,
    stage: Stage,
    receipts: u32,
}

#[derive(Debug)]
enum Stage {
    /// The request is incomplete.
    Reading(Vec<u8>),
    Sending(Output),
    /// The answer is sent. The rest of what the client sends is read and dropped, because closing a TCP connection with
    /// unread data may destroy the answer.
    Ending,
    Over,
}

/// An answer, of which the first bytes have been sent.
#[derive(Debug)]
struct Output {
    parts: [Arc<str>; 2],
    sent: usize,
}

impl Output {
    /// Returns bytes to send next, or none at the end.
    fn rest(&self) -> &[u8] {
        let [head, body] = self.parts.each_ref().map(|part| part.as_bytes());
        match self.sent.checked_sub(head.len()) {
            None => &head[self.sent..],
            Some(sent) => &body[sent..],
        }
    }
}

impl Connection {
    pub(super) fn new(socket: OwnedFd, now: Instant) -> Self {
        Self {
            socket,
            deadline: now + LIFE,
            stage: Stage::Reading(Vec::new()),
            receipts: 0,
        }
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Returns the events to wait for.
    pub(super) fn interest(&self) -> PollFlags {
        match self.stage {
            Stage::Sending(_) => PollFlags::OUT,
            Stage::Reading(_) | Stage::Ending | Stage::Over => PollFlags::IN,
        }
    }

    pub(super) fn is_over(&self, now: Instant) -> bool {
        matches!(self.stage, Stage::Over) || self.deadline <= now
    }

    /// Goes on as far as possible without waiting.
    pub(super) fn go_on(&mut self, pages: &mut Pages, now: Instant) {
        loop {
            let progress = match &mut self.stage {
                Stage::Reading(_) => self.read(pages, now),
                Stage::Sending(_) => self.send(now),
                Stage::Ending => self.ignore(),
                Stage::Over => false,
            };
            if !progress {
                return;
            }
        }
    }

    /// Reads a part of the request. Returns whether there was any.
    fn read(&mut self, pages: &mut Pages, now: Instant) -> bool {
        let mut chunk = [0; CHUNK];
        let Some(received) = self.receive(&mut chunk) else {
            return false;
        };
        let Stage::Reading(head) = &mut self.stage else {
            return true;
        };
        let room = HEAD_MAX - head.len();
        head.extend_from_slice(&chunk[..received.min(room)]);
        if let Some(answer) = answer(head) {
            self.stage = Stage::Sending(Output {
                parts: parts(answer, pages, now),
                sent: 0,
            });
        }
        true
    }

    /// Sends a part of the answer. Returns whether that was possible.
    fn send(&mut self, now: Instant) -> bool {
        let Stage::Sending(output) = &mut self.stage else {
            return false;
        };
        if output.rest().is_empty() {
            self.stage = match shutdown(&self.socket, Shutdown::Write) {
                Ok(()) => Stage::Ending,
                Err(_) => Stage::Over,
            };
            self.deadline = self.deadline.min(now + LINGER);
            return true;
        }
        match send(&self.socket, output.rest(), SendFlags::NOSIGNAL) {
            Ok(sent) => output.sent += sent,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return false,
            Err(_) => self.stage = Stage::Over,
        }
        true
    }

    /// Drops what the client has sent after its request. Returns whether there was anything.
    fn ignore(&mut self) -> bool {
        self.receive(&mut [0; CHUNK]).is_some()
    }

    /// Receives some bytes. Returns `None` if there are none. The connection is over if the client sends nothing more,
    /// or has sent too many pieces.
    fn receive(&mut self, chunk: &mut [u8]) -> Option<usize> {
        self.receipts += 1;
        match recv(&self.socket, chunk, RecvFlags::empty()) {
            Err(Errno::AGAIN) => None,
            Err(Errno::INTR) => Some(0),
            Ok((received @ 1.., _)) if self.receipts <= RECEIPTS_MAX => Some(received),
            _ => {
                self.stage = Stage::Over;
                None
            }
        }
    }
}

fn parts(answer: Answer, pages: &mut Pages, now: Instant) -> [Arc<str>; 2] {
    match answer {
        Answer::Page(format) => {
            let page = pages.get(format, now);
            [page_head(format, page.len()).into(), page]
        }
        Answer::PageHead(format) => {
            let page = pages.get(format, now);
            [page_head(format, page.len()).into(), "".into()]
        }
        Answer::Refusal(refusal) => [refusal.text().into(), "".into()],
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pair(now: Instant) -> (Connection, UnixStream, Pages) {
        let (ours, client) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let page = "x".repeat(1 << 20);
        let pages = Pages::new(move |_| page.clone());
        (Connection::new(ours.into(), now), client, pages)
    }

    #[test]
    fn every_connection_ends_in_time() {
        let start = Instant::now();
        let (mut connection, mut client, mut pages) = pair(start);
        client.write_all(b"GET /metrics HTTP/1.1\r\n").unwrap();
        connection.go_on(&mut pages, start);
        assert_eq!(connection.interest(), PollFlags::IN);
        // Neither the rest of the request nor a client that does not read prolongs it.
        client.write_all(b"\r\n").unwrap();
        connection.go_on(&mut pages, start + LIFE / 2);
        assert_eq!(
            connection.interest(),
            PollFlags::OUT,
            "the page is too large for the socket"
        );
        let end = start + LIFE;
        assert!(!connection.is_over(end - Duration::from_nanos(1)) && connection.is_over(end));
    }

    #[test]
    fn the_end_of_an_answer_is_waited_for_briefly() {
        let start = Instant::now();
        let (mut connection, mut client, mut pages) = pair(start);
        client.write_all(b"GET / HTTP/1.1\r\n\r\nand more").unwrap();
        connection.go_on(&mut pages, start);
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
        assert_eq!(connection.deadline(), start + LINGER);
        assert!(!connection.is_over(start));
        drop(client);
        connection.go_on(&mut pages, start);
        assert!(connection.is_over(start));
    }

    #[test]
    fn single_bytes_are_not_read_for_ever() {
        let start = Instant::now();
        let (mut connection, mut client, mut pages) = pair(start);
        let mut sent = 0;
        while !connection.is_over(start) {
            sent += usize::from(client.write(b"A").is_ok());
            connection.go_on(&mut pages, start);
        }
        assert!(sent <= RECEIPTS_MAX as usize, "{sent}");
    }
}
