//! Accepts processes that may want to take over, and waits until one of them says something.
//!
//! Hand-over thread. A process that says nothing delays nobody: others that connect later come first when they speak.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SocketFlags, accept_with};

use super::message::{Message, SHORT};
use crate::succession::{Bundle, Line};
use crate::sys::socket::peer_credentials;

/// Maximum number of processes that are connected and have said nothing. One more takes the place of the first.
const MAX_WAITING: usize = 16;
/// Pause after a connection could not be accepted, for lack of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The processes that are connected.
pub(super) struct Lobby {
    listener: Arc<OwnedFd>,
    /// The user that may take over, besides root.
    uid: libc::uid_t,
    interrupt: Arc<OwnedFd>,
    waiting: VecDeque<Caller>,
}

/// A process that is connected.
pub(super) struct Caller {
    pub(super) pid: u32,
    pub(super) line: Line,
    /// The time until which it has to say something.
    deadline: Instant,
}

impl Caller {
    fn refuse(&self, reason: String) {
        let refused = Message::Refused { reason };
        // The process may have ended.
        let _ = self.line.send(&refused, &Bundle::default(), Instant::now());
    }
}

impl Lobby {
    pub(super) fn new(listener: Arc<OwnedFd>, uid: libc::uid_t, interrupt: Arc<OwnedFd>) -> Self {
        Self {
            listener,
            uid,
            interrupt,
            waiting: VecDeque::new(),
        }
    }

    pub(super) fn listener(&self) -> &OwnedFd {
        &self.listener
    }

    /// Returns whether this process is asked to end.
    pub(super) fn is_closed(&self) -> bool {
        let mut polled = [PollFd::new(&self.interrupt, PollFlags::IN)];
        poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// Waits for the first process that says something, or hangs up. Returns `None` when this process is asked to end.
    pub(super) fn next(&mut self) -> Option<Caller> {
        loop {
            let first = self.waiting.front().map(|caller| caller.deadline);
            let left = first.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let left: Option<Timespec> = left.and_then(|left| left.try_into().ok());
            let own = [self.interrupt.as_fd(), self.listener.as_fd()].into_iter();
            let lines = self.waiting.iter().map(|caller| caller.line.as_fd());
            let mut polled: Vec<PollFd<'_>> = own
                .chain(lines)
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
                .collect();
            if poll(&mut polled, left.as_ref()).is_err() {
                // A signal's handler has run.
                continue;
            }
            let ready = |place: usize| !polled[place].revents().is_empty();
            if ready(0) {
                return None;
            }
            let speaker = (0..self.waiting.len()).find(|place| ready(place + 2));
            let is_new = ready(1);
            if let Some(speaker) = speaker {
                return self.waiting.remove(speaker);
            }
            self.dismiss_silent();
            if is_new && let Some(caller) = self.accept() {
                if self.waiting.len() == MAX_WAITING {
                    self.waiting.pop_front();
                }
                self.waiting.push_back(caller);
            }
        }
    }

    /// Tells a process that has connected while another one takes over to try again.
    pub(super) fn turn_away(&self, pid: u32) {
        if let Some(caller) = self.accept() {
            caller.refuse(format!(
                "process {pid} is taking over: try again when it has ended"
            ));
        }
    }

    /// Tells the processes that have said nothing that this process has handed over to another.
    pub(super) fn dismiss(&mut self, pid: u32) {
        for caller in self.waiting.drain(..) {
            caller.refuse(format!("process {pid} has taken over: ask that one"));
        }
    }

    /// Refuses everybody until this process has ended. Otherwise a new process could mistake the end for a crash, and serve
    /// what an operator has stopped. Drops `waiting` when those that have connected by now are refused.
    pub(super) fn refuse_all(mut self, waiting: Sender<()>) {
        let refuse = |caller: Caller| caller.refuse("this process is asked to end".to_owned());
        self.waiting.drain(..).for_each(refuse);
        let mut waiting = Some(waiting);
        loop {
            let mut polled = [PollFd::new(&self.listener, PollFlags::IN)];
            let time = waiting.is_some().then(Timespec::default);
            match poll(&mut polled, time.as_ref()) {
                Ok(0) => waiting = None,
                Ok(_) => self.accept().into_iter().for_each(refuse),
                // A signal's handler has run.
                Err(_) => {}
            }
        }
    }

    fn accept(&self) -> Option<Caller> {
        let Ok(stream) = accept_with(&self.listener, SocketFlags::CLOEXEC) else {
            thread::sleep(ACCEPT_PAUSE);
            return None;
        };
        let peer = peer_credentials(stream.as_fd()).ok();
        let Some(peer) = peer.filter(|peer| peer.uid == 0 || peer.uid == self.uid) else {
            tracing::warn!("a process of another user has asked to take over, and is refused");
            return None;
        };
        Some(Caller {
            pid: u32::try_from(peer.pid).unwrap_or_default(),
            line: Line::new(stream.into()).interrupted_by(Arc::clone(&self.interrupt)),
            deadline: Instant::now() + SHORT,
        })
    }

    /// Disconnects the processes whose time is over. Call this when none of them has said anything.
    fn dismiss_silent(&mut self) {
        let now = Instant::now();
        self.waiting.retain(|Caller { pid, deadline, .. }| {
            if *deadline <= now {
                tracing::warn!(
                    pid,
                    "a process has connected to the socket for take-overs and said nothing: disconnected"
                );
            }
            *deadline > now
        });
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::{UnixListener, UnixStream};

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    fn caller(lobby: &Lobby, pid: u32) -> (UnixStream, Caller) {
        let (process, line) = UnixStream::pair().unwrap();
        let caller = Caller {
            pid,
            line: Line::new(line).interrupted_by(Arc::clone(&lobby.interrupt)),
            deadline: Instant::now(),
        };
        (process, caller)
    }

    #[test]
    fn late_callers_are_heard_if_they_have_spoken() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let interrupt = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let mut lobby = Lobby::new(Arc::new(listener.into()), 0, Arc::new(interrupt));
        let (_silent, first) = caller(&lobby, 1);
        let (mut speaker, second) = caller(&lobby, 2);
        lobby.waiting.extend([first, second]);
        // Another process may have been served until now.
        speaker.write_all(b"vubt").unwrap();
        assert_eq!(lobby.next().unwrap().pid, 2);
        rustix::io::write(&lobby.interrupt, &1u64.to_ne_bytes()).unwrap();
        assert!(lobby.next().is_none());
    }
}
