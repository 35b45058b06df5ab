//! The link of one IOThread to a disk's server: the connection while there is one, and the requests that wait for it.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::SendFlags;

use super::commands::Commands;
use super::disk::NbdDisk;
use super::incoming::Incoming;
use super::lost::Lost;
use super::outgoing::Outgoing;
use crate::aio::{AioContext, EventSet, FdHandler, Timer};
use crate::defer::DeferScope;
use crate::engine::error::Error;
use crate::io::{Completer, IoOp, Requests};
use crate::log_limit::LogLimit;
use crate::nbd::{ATTEMPT_TIME, Command, Connected, HEADER_LEN_MAX, Replies, Request, Ticket};

/// The pause after the first attempt to connect that failed. It doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(2);
/// The time that a ring which stops waits for a server that does not answer.
const STOP_TIME: Duration = Duration::from_secs(3);

/// A link. IOThread only.
pub(in crate::engine) struct Link {
    disk: Arc<NbdDisk>,
    ctx: AioContext,
    me: Weak<Self>,
    state: RefCell<State>,
    channels: Cell<u64>,
    /// Asks for a connection again.
    retry: Timer,
    /// Ends the wait for the server.
    patience: Timer,
    /// Ends the wait of rings that stop.
    stop: Timer,
    log: LogLimit,
}

#[derive(Debug, Default)]
struct State {
    commands: Commands,
    connection: Option<Connection>,
    /// The answer to the question for a connection is awaited.
    asked: Option<FdHandler>,
    /// Requests fail at once.
    failing: bool,
    /// The start of the present outage: it ends with the first answer.
    outage: Option<Instant>,
    /// There was a connection before.
    had_one: bool,
    /// The number of the last connection.
    last: Option<u64>,
    pause: Duration,
    /// The reason why the last attempt failed, which is logged once.
    told: String,
}

#[derive(Debug)]
struct Connection {
    /// Removed from the event loop before the socket is closed.
    handler: FdHandler,
    socket: Arc<OwnedFd>,
    replies: Replies,
    outgoing: Outgoing,
    incoming: Incoming,
    /// The socket was full.
    is_full: bool,
    ticket: Ticket,
}

impl Link {
    /// Makes a link, with the connection with which the disk was opened if it is the first one.
    ///
    /// # Errors
    /// The disk can have no more connections, or the event loop does not take it.
    pub(in crate::engine) fn new(ctx: &AioContext, disk: &Arc<NbdDisk>) -> Result<Rc<Self>, Error> {
        disk.join()?;
        let link = Rc::new_cyclic(|me: &Weak<Self>| {
            let timer = |run: fn(&Self)| {
                let me = Weak::clone(me);
                ctx.timer(move || {
                    if let Some(link) = me.upgrade() {
                        run(&link);
                    }
                })
            };
            Self {
                disk: Arc::clone(disk),
                ctx: ctx.clone(),
                me: Weak::clone(me),
                state: RefCell::default(),
                channels: Cell::new(0),
                retry: timer(|link| link.ask(&mut link.state.borrow_mut())),
                patience: timer(Self::lose_patience),
                stop: timer(Self::end_stop),
                log: LogLimit::new(),
            }
        });
        let mut state = link.state.borrow_mut();
        match disk.take_first() {
            Some(first) => link.connect(&mut state, first)?,
            None => {
                state.outage = Some(Instant::now());
                link.patience.arm_in(link.patience_time(&state));
                link.ask(&mut state);
            }
        }
        drop(state);
        Ok(link)
    }

    pub(in crate::engine) fn is_of(&self, disk: &Arc<NbdDisk>) -> bool {
        Arc::ptr_eq(&self.disk, disk)
    }

    /// Returns whether the server takes requests to write zeroes.
    pub(super) fn writes_zeroes(&self) -> bool {
        self.disk.export().writes_zeroes()
    }

    /// Returns a number for a new channel.
    pub(super) fn number(&self) -> u64 {
        self.channels.set(self.channels.get() + 1);
        self.channels.get()
    }

    /// Starts requests of a channel.
    pub(super) fn submit(&self, batch: &mut Requests, completer: &Rc<dyn Completer>, channel: u64) {
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        for mut request in batch.drain(..) {
            request.set_completer(Rc::clone(completer));
            let is_local = matches!(request.op, IoOp::RefreshSize | IoOp::LookAnew);
            let at_rest = request.op == IoOp::FlushAtRest;
            if state.failing && !is_local {
                request.result = Err(io::Error::from_raw_os_error(libc::EIO));
                state.commands.done.push(request);
                continue;
            }
            state.commands.add(request, channel, &self.disk);
            if at_rest {
                self.hurry(state, channel);
            }
        }
        self.send(state);
        drop(guard);
        self.complete();
    }

    /// A ring stops: its requests do not wait for ever.
    pub(super) fn give_up_soon(&self, channel: u64) {
        self.hurry(&mut self.state.borrow_mut(), channel);
    }

    fn hurry(&self, state: &mut State, channel: u64) {
        if state.commands.mark_stopping(channel) {
            self.stop.arm_in(STOP_TIME);
        }
    }

    fn end_stop(&self) {
        let _scope = DeferScope::enter();
        let mut state = self.state.borrow_mut();
        if state.commands.has_stopping() {
            self.disconnect(&mut state, &Lost::Stopped);
            // The queues know that nobody has answered these.
            state.commands.fail_all(libc::ECANCELED, |active| active.stopping);
            self.lose(&mut state, &Lost::Stopped);
        }
        drop(state);
        self.complete();
    }

    /// Sends what is to be sent.
    fn send(&self, state: &mut State) {
        let Some(connection) = &mut state.connection else {
            return;
        };
        let sent = connection
            .outgoing
            .send(&connection.socket, &mut state.commands, &self.disk);
        let changed = sent.and_then(|all| connection.set_full(!all));
        if let Err(lost) = changed {
            self.lose(state, &lost);
        }
    }

    /// The socket has news.
    fn on_event(&self) {
        let _scope = DeferScope::enter();
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        if let Some(connection) = &mut state.connection {
            let received = connection
                .incoming
                .receive(&connection.socket, &mut state.commands, &self.disk);
            if !state.commands.done.is_empty() {
                // The server works.
                (state.outage, state.pause) = (None, Duration::ZERO);
            }
            match received {
                Err(lost) => self.lose(state, &lost),
                Ok(()) => self.send(state),
            }
        }
        drop(guard);
        self.complete();
    }

    /// Passes on requests that are over. No borrow is live, because their owner may submit others.
    fn complete(&self) {
        loop {
            let mut done = std::mem::take(&mut self.state.borrow_mut().commands.done);
            if done.is_empty() {
                return;
            }
            done.drain(..).for_each(|request| request.finish());
            let mut state = self.state.borrow_mut();
            if state.commands.done.is_empty() {
                // Kept for its capacity.
                state.commands.done = done;
            }
        }
    }

    /// Closes the connection, which is of no use any more.
    fn disconnect(&self, state: &mut State, why: &Lost) {
        if state.connection.take().is_some()
            && let Some(suppressed) = self.log.pass_normal("lost", "")
        {
            let disk = self.disk.path().display();
            tracing::warn!(%disk, %why, suppressed, "lost the connection to the server: connecting again");
        }
        state.commands.rewind();
    }

    /// Connects again, and waits for that as long as the disk's options say.
    fn lose(&self, state: &mut State, why: &Lost) {
        self.disconnect(state, why);
        let now = Instant::now();
        let end = *state.outage.get_or_insert(now) + self.patience_time(state);
        if state.failing || end <= now {
            self.fail(state);
        } else {
            self.patience.arm(end);
        }
        match state.pause.is_zero() {
            true => {
                state.pause = FIRST_PAUSE;
                self.ask(state);
            }
            // The last connection brought nothing.
            false => self.pause(state),
        }
    }

    /// Returns how long requests wait for the server.
    fn patience_time(&self, state: &State) -> Duration {
        let delay = self.disk.options().reconnect_delay;
        match state.had_one {
            true => delay,
            false => delay.max(ATTEMPT_TIME),
        }
    }

    fn lose_patience(&self) {
        let _scope = DeferScope::enter();
        let mut state = self.state.borrow_mut();
        if state.connection.is_none() {
            self.fail(&mut state);
        }
        drop(state);
        self.complete();
    }

    /// Fails all requests, and those to come.
    fn fail(&self, state: &mut State) {
        if !std::mem::replace(&mut state.failing, true) {
            let waited = self.patience_time(state).as_secs();
            tracing::error!(
                disk = %self.disk.path().display(), waited,
                "the server is away: requests fail until it is back"
            );
        }
        state.commands.fail_all(libc::EIO, |_| true);
    }

    /// Asks for a connection.
    fn ask(&self, state: &mut State) {
        if state.asked.is_some() || state.connection.is_some() {
            return;
        }
        let me = Weak::clone(&self.me);
        let answered = move |_| {
            if let Some(link) = me.upgrade() {
                link.on_answer();
            }
        };
        let line = self.disk.line();
        let asked = line.ask();
        let watched = asked.map_err(|error| error.to_string()).and_then(|()| {
            let handler = self.ctx.add_fd(line.socket(), EventSet::IN, answered);
            handler.map_err(|error| error.to_string())
        });
        match watched {
            Ok(handler) => state.asked = Some(handler),
            Err(error) => {
                self.tell(
                    state,
                    format!("the process that connects to it cannot be asked: {error}"),
                );
                self.pause(state);
            }
        }
    }

    fn on_answer(&self) {
        let _scope = DeferScope::enter();
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        let answer = match self.disk.line().answer() {
            // Another IOThread has taken it, and its own will follow.
            Ok(None) => return,
            Ok(Some(answer)) => answer,
            Err(error) => Err(format!("the process that connects to it has ended: {error}")),
        };
        let handler = state.asked.take();
        if let Ok(connected) = &answer
            && connected.is_beside(state.last)
        {
            // The answer to another IOThread. The connector did not know yet that our last connection has ended.
            drop((answer, handler));
            return self.ask(state);
        }
        let connected = answer.and_then(|connected| {
            self.disk
                .accept(&connected.export)
                .map_err(|why| format!("its export has changed: {why}"))?;
            self.connect(state, connected).map_err(|error| error.to_string())
        });
        match connected {
            Ok(()) => {
                state.told.clear();
                tracing::info!(disk = %self.disk.path().display(), "connected to the server");
                self.send(state);
            }
            Err(why) => {
                self.tell(state, why);
                self.pause(state);
            }
        }
        drop(guard);
        drop(handler);
        self.complete();
    }

    /// Uses a new connection.
    fn connect(&self, state: &mut State, connected: Connected) -> Result<(), Error> {
        let (replies, socket) = (connected.export.replies, Arc::new(connected.socket));
        let me = Weak::clone(&self.me);
        let on_event = move |_| {
            if let Some(link) = me.upgrade() {
                link.on_event();
            }
        };
        let handler = self.ctx.add_fd(Arc::clone(&socket), EventSet::IN, on_event)?;
        state.connection = Some(Connection {
            handler,
            socket,
            replies,
            outgoing: Outgoing::new(replies),
            incoming: Incoming::new(replies),
            is_full: false,
            ticket: connected.ticket,
        });
        (state.failing, state.had_one) = (false, true);
        state.last = state
            .connection
            .as_ref()
            .map(|connection| connection.ticket.number());
        if state.commands.is_empty() {
            // Nothing waits for an answer that would end the outage.
            state.outage = None;
        }
        self.patience.cancel();
        self.retry.cancel();
        Ok(())
    }

    /// Tries again later.
    fn pause(&self, state: &mut State) {
        state.pause = (state.pause * 2).clamp(FIRST_PAUSE, LAST_PAUSE);
        self.retry.arm_in(state.pause);
    }

    /// Logs why there is no connection, once for each reason in a row.
    fn tell(&self, state: &mut State, why: String) {
        if state.told != why {
            tracing::warn!(disk = %self.disk.path().display(), why, "cannot connect to the server: trying again");
            state.told = why;
        }
    }
}

impl Connection {
    /// Notes whether the socket is full, and waits for room.
    fn set_full(&mut self, full: bool) -> Result<(), Lost> {
        if std::mem::replace(&mut self.is_full, full) == full {
            return Ok(());
        }
        let events = match full {
            true => EventSet::IN | EventSet::OUT,
            false => EventSet::IN,
        };
        self.handler
            .set_events(events)
            .map_err(|error| Lost::Io(io::Error::other(error)))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.disk.leave();
        if self.state.get_mut().asked.is_some() {
            self.disk.line().abandon();
        }
        if let Some(connection) = &self.state.get_mut().connection {
            let end = Request {
                command: Command::Disconnect,
                cookie: 0,
                offset: 0,
                len: 0,
            };
            let mut header = [0; HEADER_LEN_MAX];
            let len = end.encode(connection.replies, &mut header);
            // A courtesy: the server may be gone.
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let _ = rustix::net::send(connection.socket.as_fd(), &header[..len], flags);
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("disk", &self.disk)
            .finish_non_exhaustive()
    }
}
