//! The work of a helper: connections for its daemon, and the end of those that the daemon no longer uses.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvFlags, SendFlags};

use super::dial::{self, Dialled};
use super::ending::Ending;
use super::peer::Peers;
use super::predecessor::{Predecessors, Presence, answer_alive};
use super::target::Target;
use super::tls::TlsClient;
use crate::nbd::{Answer, Ask, Offer, Remote, Server};
use crate::packet::{receive, send};

/// The state of a helper.
#[derive(Debug)]
pub(super) struct Service {
    target: Target,
    export: String,
    tls: Option<TlsClient>,
    predecessors: Predecessors,
    presence: Option<Presence>,
    /// Later helpers that wait for an answer.
    asking: Vec<OwnedFd>,
    /// Connections that the daemon uses.
    used: BTreeMap<u64, Arc<OwnedFd>>,
    ending: Ending,
    last: u64,
}

impl Service {
    /// Makes the service for an export. This opens sockets and files that a confined process could not open.
    ///
    /// # Errors
    /// The credentials cannot be used, or there is no room for another socket.
    pub(super) fn new(target: Target, remote: &Remote) -> Result<Self, String> {
        let tls = remote.tls.as_ref().map(TlsClient::load).transpose()?;
        let look = |error: std::io::Error| format!("cannot look for earlier processes: {error}");
        let name = match &remote.server {
            // Whatever the working directory is.
            Server::Unix(path) => std::path::absolute(path).map_err(look)?.display().to_string(),
            Server::Inet(..) => remote.server.to_string(),
        };
        let predecessors = Predecessors::find(&name, &remote.export).map_err(look)?;
        let presence = Presence::announce(&name, &remote.export).map_err(look)?;
        let peers = match target {
            Target::Unix(_) => Peers::new().ok(),
            Target::Inet(_) => None,
        };
        Ok(Self {
            target,
            export: remote.export.clone(),
            tls,
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
            Ok(Some((Ask::Connect(time), _))) => return self.connect(line, time),
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

    /// Makes a connection within `time`. Returns false if the daemon has ended.
    fn connect(&mut self, line: &OwnedFd, time: Duration) -> bool {
        let others = self.used.keys().copied().collect();
        let (answer, fd): (Answer, _) = match self.try_connect(Instant::now() + time) {
            Err(why) => (Err(why), None),
            Ok(Dialled {
                network,
                relayed,
                export,
            }) => {
                self.last += 1;
                self.used.insert(self.last, Arc::clone(&network));
                let offer = Offer {
                    export,
                    number: self.last,
                    others,
                };
                (Ok(offer), Some(relayed.map_or(network, Arc::new)))
            }
        };
        let fds: Vec<_> = fd.iter().map(|socket| socket.as_fd()).collect();
        send(line.as_fd(), &answer, &fds, SendFlags::empty()).is_ok()
    }

    fn try_connect(&mut self, end: Instant) -> Result<Dialled, String> {
        if !self.predecessors.wait(end) {
            return Err("it still executes requests of an earlier process".to_owned());
        }
        if !self.ending.finish(Some(end)) {
            return Err("it still executes requests of an earlier connection".to_owned());
        }
        dial::connect(&self.target, &self.export, self.tls.as_ref(), end)
    }
}
