//! The monitor thread's loop: accepts clients, runs their commands, sends answers and events.
//!
//! The loop waits in one place for all clients. A client that does not read its answers gets no further commands
//! executed, and is disconnected if too many events are queued for it. Commands that take time are answered later
//! ([`Reply`]). Meanwhile only their own client waits.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SocketFlags, accept_with};
use serde_json::json;

use super::builtin;
use super::client::Client;
use super::command::{Command, Scope};
use super::error::QmpError;
use super::events::Event;
use super::fdsets::FdSets;
use super::json::to_line;
use super::mailbox::{Events, Item, Mailbox, Reply};
use super::session::{answer, parse};
use crate::log_limit::LogLimit;

/// Maximum number of clients at a time. Further clients are turned away.
const MAX_CLIENTS: usize = 32;
/// Maximum number of connections to accept before clients are served again.
const MAX_ACCEPTS: usize = 64;
/// Pause after `accept` failed for lack of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time for clients to read the remaining output when the monitor ends.
const FAREWELL: Duration = Duration::from_millis(200);

/// A server for QMP clients. `C` is the subject of its commands.
pub struct Monitor<C> {
    context: C,
    table: Vec<Command<C>>,
    on_quit: Box<dyn Fn() + Send>,
    listeners: Vec<UnixListener>,
    clients: Vec<Client>,
    /// The number of the next client.
    next: u64,
    fdsets: FdSets,
    mailbox: Arc<Mailbox>,
    /// The time until which no connection is accepted.
    pause: Option<Instant>,
    log: LogLimit,
}

impl<C> Monitor<C> {
    /// Makes a monitor without sockets. It has the commands of the protocol and those in `commands`. It calls `on_quit`
    /// when a client asks the process to end.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn new(
        context: C,
        commands: Vec<Command<C>>,
        on_quit: impl Fn() + Send + 'static,
    ) -> io::Result<Self> {
        let mut table = builtin::commands();
        table.extend(commands);
        Ok(Self {
            context,
            table,
            on_quit: Box::new(on_quit),
            listeners: Vec::new(),
            clients: Vec::new(),
            next: 0,
            fdsets: FdSets::default(),
            mailbox: Arc::new(Mailbox::new()?),
            pause: None,
            log: LogLimit::new(),
        })
    }

    /// Adds a socket whose clients will be served.
    ///
    /// # Errors
    /// The socket cannot be made non-blocking.
    pub fn listen(&mut self, listener: UnixListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        self.listeners.push(listener);
        Ok(())
    }

    /// Returns the handle that sends events to clients.
    pub fn events(&self) -> Events {
        Events::new(Arc::clone(&self.mailbox))
    }

    /// Returns the sets of descriptors that clients have passed.
    pub fn fdsets(&self) -> FdSets {
        self.fdsets.clone()
    }

    /// Serves clients until [`Events::stop`].
    pub fn run(mut self) {
        while self.deliver() {
            for n in 0..self.clients.len() {
                self.serve(n);
            }
            self.dismiss();
            self.wait();
        }
        self.say_farewell();
    }

    /// Hands queued answers and events to the clients. Returns false if the monitor has to end.
    fn deliver(&mut self) -> bool {
        let (items, dropped) = self.mailbox.take(Instant::now());
        if dropped > 0 {
            tracing::warn!(
                dropped,
                "more events than the monitor could send: clients do not see all of them"
            );
        }
        for item in items {
            match item {
                Item::Event(event) => self.broadcast(&event),
                Item::Answer { client, outcome } => {
                    // The client may have left.
                    let client = self.clients.iter_mut().find(|known| known.number == client);
                    if let Some(client) = client
                        && let Some(id) = client.awaited.take()
                    {
                        client.queue(&answer(id, outcome));
                    }
                }
                Item::Stop => return false,
            }
        }
        true
    }

    fn broadcast(&mut self, event: &Event) {
        let line = to_line(&event.to_message());
        for client in &mut self.clients {
            client.queue_event(&line);
        }
    }

    /// Executes the commands of a client, as long as it reads the answers. Of a client that has hung up, executes one
    /// command, because nobody waits for the others, and other clients may wait.
    fn serve(&mut self, n: usize) {
        let client = &mut self.clients[n];
        let mut quit = false;
        while let Some(message) = client.next_message() {
            let (id, request) = match message {
                Ok(message) => parse(message),
                Err(error) => (None, Err(QmpError::generic(error.to_string()))),
            };
            let number = client.number;
            let outcome = match request {
                Err(refusal) => Some(Err(refusal)),
                Ok(request) => {
                    let mut scope = Scope {
                        context: &mut self.context,
                        fdsets: &self.fdsets,
                        session: &mut client.session,
                        table: &self.table,
                        quit: &mut quit,
                    };
                    scope.run(request, || Reply::new(&self.mailbox, number))
                }
            };
            match outcome {
                Some(outcome) => client.queue(&answer(id, outcome)),
                None => client.awaited = Some(id),
            }
            if client.has_hung_up() {
                break;
            }
        }
        client.send();
        if quit {
            (self.on_quit)();
        }
    }

    /// Removes the clients that have left or do not read.
    fn dismiss(&mut self) {
        let before = self.clients.len();
        for client in self.clients.iter().filter(|client| client.has_overrun()) {
            if let Some(suppressed) = self.log.pass("overrun", "") {
                let client = client.number;
                tracing::warn!(
                    client,
                    suppressed,
                    "QMP client disconnected: it does not read its events"
                );
            }
        }
        self.clients.retain(|client| !client.is_over());
        if before > 0 && self.clients.is_empty() {
            self.fdsets.clear();
        }
    }

    /// Waits for clients, answers, events, and the time when a limited event is due.
    fn wait(&mut self) {
        let timeout = self.timeout(Instant::now());
        let mut fds = vec![PollFd::from_borrowed_fd(self.mailbox.as_fd(), PollFlags::IN)];
        let accepting = match self.pause {
            None => self.listeners.len(),
            Some(_) => 0,
        };
        let listeners = self.listeners[..accepting].iter();
        fds.extend(listeners.map(|listener| PollFd::new(listener, PollFlags::IN)));
        let mut polled = Vec::new();
        for (n, client) in self.clients.iter().enumerate() {
            if let Some(interest) = client.interest() {
                fds.push(PollFd::from_borrowed_fd(client.as_fd(), interest));
                polled.push(n);
            }
        }
        // Fails only for lack of memory or because of a signal. Then there are no events.
        let _ = poll(&mut fds, timeout.as_ref());
        let events: Vec<_> = fds.iter().map(PollFd::revents).collect();
        drop(fds);
        for (n, events) in polled.into_iter().zip(&events[1 + accepting..]) {
            if !events.is_empty() {
                self.clients[n].occurred(*events);
            }
        }
        for (n, events) in events[1..=accepting].iter().enumerate() {
            if !events.is_empty() {
                self.accept(n);
            }
        }
    }

    /// Returns the longest time to wait, or `None` if nothing is due.
    fn timeout(&mut self, now: Instant) -> Option<Timespec> {
        self.pause = self.pause.filter(|end| *end > now);
        let due = [self.mailbox.deadline(), self.pause].into_iter().flatten().min();
        let wait = match self.clients.iter().any(Client::has_work) {
            true => Duration::ZERO,
            false => due?.saturating_duration_since(now),
        };
        Timespec::try_from(wait).ok()
    }

    /// Accepts the clients that have connected to a socket.
    fn accept(&mut self, listener: usize) {
        for _ in 0..MAX_ACCEPTS {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = match accept_with(&self.listeners[listener], flags) {
                Ok(socket) => socket,
                Err(rustix::io::Errno::AGAIN) => return,
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => continue,
                Err(error) => return self.pause_accepting(&error.into()),
            };
            if self.clients.len() >= MAX_CLIENTS {
                if let Some(suppressed) = self.log.pass("too many", "") {
                    tracing::warn!(
                        clients = MAX_CLIENTS,
                        suppressed,
                        "QMP client turned away: too many are connected"
                    );
                }
                continue;
            }
            self.greet(socket.into());
        }
    }

    fn pause_accepting(&mut self, error: &io::Error) {
        if let Some(suppressed) = self.log.pass("not accepted", "") {
            tracing::warn!(%error, suppressed, "cannot accept a QMP client: retrying");
        }
        self.pause = Some(Instant::now() + ACCEPT_PAUSE);
    }

    fn greet(&mut self, socket: UnixStream) {
        let mut client = Client::new(self.next, socket);
        self.next += 1;
        client.queue(&json!({"QMP": {"version": builtin::version(), "capabilities": []}}));
        self.clients.push(client);
    }

    /// Sends the remaining output, as far as clients read it.
    fn say_farewell(&mut self) {
        let end = Instant::now() + FAREWELL;
        loop {
            self.clients.iter_mut().for_each(Client::send);
            self.clients.retain(Client::has_output);
            let left = end.saturating_duration_since(Instant::now());
            if self.clients.is_empty() || left.is_zero() {
                return;
            }
            let client = |client| PollFd::from_borrowed_fd(Client::as_fd(client), PollFlags::OUT);
            let mut fds: Vec<_> = self.clients.iter().map(client).collect();
            let _ = poll(&mut fds, Timespec::try_from(left).ok().as_ref());
        }
    }
}
