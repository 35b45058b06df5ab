//! The work of a helper: connections for its daemon, and the end of those that the daemon no longer uses.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvFlags, SendFlags};

use super::dial;
use super::ending::Ending;
use super::peer::Peers;
use super::predecessor::{Predecessors, Presence, answer_alive};
use super::target::Target;
use crate::nbd::{ATTEMPT_TIME, Answer, Ask, Offer, Server};
use crate::packet::{receive, send};

/// The state of a helper.
#[derive(Debug)]
pub(super) struct Service {
    target: Target,
    export: String,
    predecessors: Predecessors,
    presence: Option<Presence>,
    /// Later helpers that wait for an answer.
    asking: Vec<OwnedFd>,
    /// Connections that the daemon uses.
    used: BTreeMap<u64, OwnedFd>,
    ending: Ending,
    last: u64,
}

impl Service {
    /// Makes the service for an export. This opens sockets that a confined process could not open.
    pub(super) fn new(target: Target, server: &Server, export: &str) -> std::io::Result<Self> {
        let name = match server {
            // Whatever the working directory is.
            Server::Unix(path) => std::path::absolute(path)?.display().to_string(),
            Server::Inet(..) => server.to_string(),
        };
        let predecessors = Predecessors::find(&name, export)?;
        let presence = Presence::announce(&name, export)?;
        let peers = match target {
            Target::Unix(_) => Peers::new().ok(),
            Target::Inet(_) => None,
        };
        Ok(Self {
            target,
            export: export.to_owned(),
            predecessors,
            presence,
            asking: Vec::new(),
            used: BTreeMap::new(),
            ending: Ending::new(peers),
            last: 0,
        })
    }

    /// Answers until the other end of `line` is closed, and then waits for the server.
    pub(super) fn run(mut self, line: &OwnedFd) {
        while self.step(line) {}
        std::mem::take(&mut self.used)
            .into_values()
            .for_each(|fd| self.ending.push(fd));
        self.ending.finish(None);
    }

    /// Waits for news, and acts on them. Returns false if the daemon has ended.
    fn step(&mut self, line: &OwnedFd) -> bool {
        let (mut fds, pause) = self.ending.awaited();
        fds.push(PollFd::new(line, PollFlags::IN));
        fds.extend(self.presence.as_ref().map(Presence::awaited));
        let _ = poll(&mut fds, pause.and_then(|pause| pause.try_into().ok()).as_ref());
        drop(fds);
        self.ending.progress();
        self.asking
            .extend(self.presence.iter().flat_map(Presence::asking));
        match receive(line, RecvFlags::DONTWAIT) {
            Ok(Some((Ask::Connect, _))) => return self.connect(line),
            Ok(Some((Ask::End(number), _))) => {
                if let Some(socket) = self.used.remove(&number) {
                    self.ending.push(socket);
                }
            }
            // The daemon lives, and it did so when they asked.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                self.asking.drain(..).for_each(answer_alive)
            }
            Ok(None) | Err(_) => return false,
        }
        true
    }

    /// Makes a connection. Returns false if the daemon has ended.
    fn connect(&mut self, line: &OwnedFd) -> bool {
        let others = self.used.keys().copied().collect();
        let answer: Answer = self.try_connect().map(|(socket, export)| {
            self.last += 1;
            self.used.insert(self.last, socket);
            Offer {
                export,
                number: self.last,
                others,
            }
        });
        let made = answer
            .as_ref()
            .ok()
            .and_then(|offer| self.used.get(&offer.number));
        let fds: Vec<_> = made.iter().map(|socket| socket.as_fd()).collect();
        send(line.as_fd(), &answer, &fds, SendFlags::empty()).is_ok()
    }

    fn try_connect(&mut self) -> Result<(OwnedFd, crate::nbd::Export), String> {
        let end = Instant::now() + ATTEMPT_TIME;
        if !self.predecessors.wait(end) {
            return Err("it still executes requests of an earlier process".to_owned());
        }
        if !self.ending.finish(Some(end)) {
            return Err("it still executes requests of an earlier connection".to_owned());
        }
        dial::connect(&self.target, &self.export, end)
    }
}
