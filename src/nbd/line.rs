//! The line to the process or thread that connects to a server for one export.
//!
//! Several threads may ask over the same line. Each question is answered once, and an answer is as good for one asker as
//! for another, because all of them want the same.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags};
use serde::{Deserialize, Serialize};

use super::export::Export;
use super::remote::Remote;
use crate::interrupt;
use crate::packet::receive;

/// The time after which an attempt to connect is given up, together with the handshake.
pub(crate) const ATTEMPT_TIME: Duration = Duration::from_secs(10);
/// The pause between attempts while a node is opened.
const PAUSE: Duration = Duration::from_millis(100);
/// The time after which a wait looks whether the process has to end, in case a signal came just before the wait.
const GLANCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// A message to the connector.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) enum Ask {
    /// Another connection, once the server is done with those that have ended. The attempt ends after this time.
    Connect(Duration),
    /// The connection with this number is no longer used. This is not answered.
    End(u64),
}

/// A connection, which comes beside this as a descriptor, after the handshake.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Offer {
    pub(crate) export: Export,
    pub(crate) number: u64,
    /// The other connections whose end the connector did not know of.
    pub(crate) others: Vec<u64>,
}

/// An answer.
pub(crate) type Answer = Result<Offer, String>;

/// A connection that is ready for requests, and what the server says of its export.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) socket: OwnedFd,
    pub(crate) export: Export,
    pub(crate) ticket: Ticket,
    others: Vec<u64>,
}

impl Connected {
    /// Returns whether the server may still execute requests that were sent over connection `number`.
    pub(crate) fn is_beside(&self, number: Option<u64>) -> bool {
        number.is_some_and(|number| self.others.contains(&number))
    }
}

/// The use of a connection. Dropping it tells the connector that the connection is no longer used.
#[derive(Debug)]
pub(crate) struct Ticket {
    line: Arc<OwnedFd>,
    number: u64,
}

impl Ticket {
    pub(crate) fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // If the connector is gone, it waits for the server by itself.
        let _ = tell(&self.line, &Ask::End(self.number));
    }
}

fn tell(line: &OwnedFd, message: &Ask) -> io::Result<()> {
    let packet = serde_json::to_vec(message)?;
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::send(line, &packet, flags)?;
    Ok(())
}

/// The asker's end of a line. Any thread.
#[derive(Debug)]
pub struct Line {
    remote: Remote,
    socket: Arc<OwnedFd>,
    /// Answers that nobody waits for any more.
    abandoned: Arc<AtomicUsize>,
}

impl Line {
    pub(crate) fn new(remote: Remote, socket: OwnedFd) -> Self {
        Self {
            remote,
            socket: Arc::new(socket),
            abandoned: Arc::default(),
        }
    }

    /// Makes a line to the same process with a descriptor of its own, which an event loop can watch beside the other one.
    pub(crate) fn share(&self) -> io::Result<Self> {
        let socket = self.socket.try_clone()?;
        Ok(Self {
            abandoned: Arc::clone(&self.abandoned),
            ..Self::new(self.remote.clone(), socket)
        })
    }

    /// Returns the export that the line leads to.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// Returns the socket, which becomes readable with each answer.
    pub(crate) fn socket(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.socket)
    }

    /// Asks for a connection. Does not wait.
    ///
    /// # Errors
    /// The other end is gone, or has too many questions.
    pub(crate) fn ask(&self) -> io::Result<()> {
        self.ask_within(ATTEMPT_TIME)
    }

    fn ask_within(&self, time: Duration) -> io::Result<()> {
        tell(&self.socket, &Ask::Connect(time))
    }

    /// An asker will not take its answer. The next one that comes is dropped in its place.
    pub(crate) fn abandon(&self) {
        // Relaxed: only the number counts.
        self.abandoned.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the next answer, or `None` if there is none yet. Does not wait.
    ///
    /// # Errors
    /// The other end is gone.
    pub(crate) fn answer(&self) -> io::Result<Option<Result<Connected, String>>> {
        loop {
            let answer = self.next_answer()?;
            let one_less = |count: usize| count.checked_sub(1);
            let relaxed = Ordering::Relaxed;
            if answer.is_none() || self.abandoned.fetch_update(relaxed, relaxed, one_less).is_err() {
                return Ok(answer);
            }
        }
    }

    fn next_answer(&self) -> io::Result<Option<Result<Connected, String>>> {
        match receive::<Answer>(self.socket.as_fd(), RecvFlags::DONTWAIT) {
            Ok(Some((Ok(offer), fds))) => Ok(Some(self.take(offer, fds))),
            Ok(Some((Err(why), _))) => Ok(Some(Err(why))),
            Ok(None) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn take(&self, offer: Offer, fds: Vec<OwnedFd>) -> Result<Connected, String> {
        // From here on the connector learns of the end of the connection.
        let ticket = Ticket {
            line: self.socket(),
            number: offer.number,
        };
        match fds.into_iter().next() {
            Some(socket) => Ok(Connected {
                socket,
                export: offer.export,
                ticket,
                others: offer.others,
            }),
            None => Err("no file descriptor is left for it (ulimit -n)".to_owned()),
        }
    }

    /// Connects, and tries again until `end`, or only once without one. Waits.
    ///
    /// # Errors
    /// The last attempt failed, for this reason.
    pub(crate) fn connect(&self, end: Option<Instant>) -> Result<Connected, String> {
        let left = || end.map_or(ATTEMPT_TIME, |end| end.saturating_duration_since(Instant::now()));
        loop {
            let gone = |error: io::Error| format!("the process that connects to it has ended ({error})");
            self.ask_within(left().min(ATTEMPT_TIME)).map_err(gone)?;
            let answer = loop {
                if let Some(answer) = self.answer().map_err(gone)? {
                    break answer;
                }
                if interrupt::is_requested() {
                    self.abandon();
                    return Err(interrupt::TOLD.to_owned());
                }
                // Each attempt ends by itself, but the connector may be busy with the question of another thread.
                if end.is_some_and(|end| Instant::now() > end + 2 * PAUSE) {
                    self.abandon();
                    return Err("the server does not answer".to_owned());
                }
                let _ = poll(&mut [PollFd::new(&*self.socket, PollFlags::IN)], Some(&GLANCE));
            };
            match answer {
                Err(_) if interrupt::is_requested() => return Err(interrupt::TOLD.to_owned()),
                Err(_) if end.is_some() && left() > 2 * PAUSE => std::thread::sleep(PAUSE),
                answer => return answer,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;
    use crate::nbd::Server;
    use crate::packet::send;

    #[test]
    fn an_abandoned_question_takes_its_answer_along() {
        let pair = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        );
        let (ours, theirs) = pair.expect("two sockets");
        let remote = Remote {
            server: Server::Unix("s".into()),
            export: "e".to_owned(),
            tls: None,
        };
        let line = Line::new(remote, ours);
        let other = line.share().expect("a descriptor");
        other.abandon();
        let answer = |why: &str| {
            let answer: Answer = Err(why.to_owned());
            send(theirs.as_fd(), &answer, &[], SendFlags::empty()).expect("answer");
        };
        answer("stale");
        assert!(line.answer().expect("open").is_none());
        answer("fresh");
        let told = line.answer().expect("open").expect("an answer");
        assert_eq!(told.err(), Some("fresh".to_owned()));
        drop(theirs);
        assert!(line.answer().is_err());
    }
}
