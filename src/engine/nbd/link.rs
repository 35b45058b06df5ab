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
use crate::aio::{AioContext, EventSet, FdHandler, RemoteWork, Timer};
use crate::defer::DeferScope;
use crate::engine::error::Error;
use crate::engine::link_channel::RemoteLink;
use crate::engine::pace::Pace;
use crate::io::{Completer, IoOp, IoRequest, Requests};
use crate::log_limit::LogLimit;
use crate::nbd::{Command, HEADER_LEN_MAX, Replies, Request, Ticket};

/// The time that a ring which stops waits for a server that does not answer.
const STOP_TIME: Duration = Duration::from_secs(3);

/// A link. IOThread only.
pub(in crate::engine) struct Link {
    pub(super) disk: Arc<NbdDisk>,
    pub(super) ctx: AioContext,
    pub(super) me: Weak<Self>,
    pub(super) state: RefCell<State>,
    pub(super) channels: Cell<u64>,
    /// Asks for a connection again.
    pub(super) retry: Timer,
    /// Ends the wait for the server.
    pub(super) patience: Timer,
    /// Ends the wait of rings that stop.
    pub(super) stop: Timer,
    /// Ends the time in which answers gather.
    gather: Timer,
    remote: RemoteWork,
    pub(super) log: LogLimit,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) commands: Commands,
    pub(super) connection: Option<Connection>,
    /// The answer to the question for a connection is awaited.
    pub(super) asked: Option<FdHandler>,
    /// Requests fail at once.
    pub(super) failing: bool,
    /// The start of the present outage: it ends with the first answer.
    pub(super) outage: Option<Instant>,
    /// There was a connection before.
    pub(super) had_one: bool,
    /// The last connection was closed by this end, and the first attempt to replace it has not ended.
    pub(super) replacing: bool,
    /// The number of the last connection.
    pub(super) last: Option<u64>,
    pub(super) pause: Duration,
    /// The reason why the last attempt failed, which is logged once.
    pub(super) told: String,
    /// The size has changed, and nobody has been told.
    pub(super) resized: bool,
    /// Requests for the size that the answer completes.
    pub(super) sizing: Requests,
    /// Requests for the size that came when the question was on its way.
    pub(super) size_later: Requests,
}

#[derive(Debug)]
pub(super) struct Connection {
    /// Removed from the event loop before the socket is closed.
    pub(super) handler: FdHandler,
    pub(super) socket: Arc<OwnedFd>,
    pub(super) replies: Replies,
    pub(super) outgoing: Outgoing,
    pub(super) incoming: Incoming,
    /// The socket was full.
    pub(super) is_full: bool,
    /// Answers gather: the arrival of more is no news.
    pub(super) gathers: bool,
    pub(super) pace: Pace,
    /// The size of the export when the connection was made. Servers may refuse what is beyond.
    pub(super) size: u64,
    pub(super) ticket: Ticket,
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
                gather: timer(Self::take_answers),
                remote: ctx.remote_work(),
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

    fn hurry(&self, state: &mut State, channel: u64) {
        if state.commands.mark_stopping(channel) {
            self.stop.arm_in(STOP_TIME);
        }
        let mut later = std::mem::take(&mut state.size_later);
        state.sizing.append(&mut later);
        Self::give_size(state, Err("the disk has to stop"));
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
    pub(super) fn send(&self, state: &mut State) {
        let Some(connection) = &mut state.connection else {
            return;
        };
        let sent = connection
            .outgoing
            .send(&connection.socket, &mut state.commands, &self.disk);
        let changed = sent.and_then(|all| connection.watch(!all, connection.gathers));
        if let Err(lost) = changed {
            self.lose(state, &lost);
        }
    }

    /// Takes the answers that have come.
    pub(super) fn take_answers(&self) {
        let _scope = DeferScope::enter();
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        if let Some(connection) = &mut state.connection {
            let received = connection
                .incoming
                .receive(&connection.socket, &mut state.commands, &self.disk);
            let answers = state.commands.done.len();
            if answers > 0 {
                // The server works.
                (state.outage, state.pause) = (None, Duration::ZERO);
            }
            let now = self.ctx.clock().read();
            let time = connection.pace.taken(now, answers, state.commands.len());
            if let Some(time) = time {
                self.gather.arm_in(time);
            }
            match received.and_then(|()| connection.watch(connection.is_full, time.is_some())) {
                Err(lost) => self.lose(state, &lost),
                Ok(()) => self.send(state),
            }
        }
        drop(guard);
        self.complete();
    }

    /// Passes on requests that are over. No borrow is live, because their owner may submit others.
    pub(super) fn complete(&self) {
        loop {
            let mut done = std::mem::take(&mut self.state.borrow_mut().commands.done);
            if done.is_empty() {
                break;
            }
            done.drain(..).for_each(|request| request.finish());
            let mut state = self.state.borrow_mut();
            if state.commands.done.is_empty() {
                // Kept for its capacity.
                state.commands.done = done;
            }
        }
        let mut state = self.state.borrow_mut();
        self.remote
            .set(state.connection.is_some() && !state.commands.is_empty());
        let resized = std::mem::take(&mut state.resized);
        drop(state);
        if resized {
            self.disk.size_listeners().tell();
        }
    }
}

/// Returns the end of what a request needs of the disk.
fn end_of(request: &IoRequest) -> u64 {
    let ranges = request
        .ranges
        .iter()
        .map(|range| range.offset.saturating_add(range.len));
    let data = request.offset.saturating_add(request.whole().len() as u64);
    ranges.max().unwrap_or(data)
}

impl Connection {
    /// Notes whether the socket is full, and whether answers gather. Waits for what matters: room, or answers.
    fn watch(&mut self, full: bool, gathers: bool) -> Result<(), Lost> {
        let before = (self.is_full, self.gathers);
        (self.is_full, self.gathers) = (full, gathers);
        if before == (full, gathers) {
            return Ok(());
        }
        let mut events = EventSet::empty();
        events.set(EventSet::OUT, full);
        events.set(EventSet::IN, !gathers);
        self.handler
            .set_events(events)
            .map_err(|error| Lost::Io(io::Error::other(error)))
    }
}

impl RemoteLink for Link {
    fn writes_zeroes(&self) -> bool {
        self.disk.export().writes_zeroes()
    }

    fn waits_for_others(&self) -> bool {
        self.remote.waits()
    }

    fn number(&self) -> u64 {
        self.channels.set(self.channels.get() + 1);
        self.channels.get()
    }

    fn submit(&self, batch: &mut Requests, completer: &Rc<dyn Completer>, channel: u64) {
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        let (mut beyond, size) = (
            false,
            state
                .connection
                .as_ref()
                .map_or(u64::MAX, |connection| connection.size),
        );
        for mut request in batch.drain(..) {
            request.set_completer(Rc::clone(completer));
            if request.op == IoOp::RefreshSize {
                self.refresh_size(state, request);
                continue;
            }
            let at_rest = request.op == IoOp::FlushAtRest;
            if state.failing && request.op != IoOp::LookAnew {
                request.result = Err(io::Error::from_raw_os_error(libc::EIO));
                state.commands.done.push(request);
                continue;
            }
            beyond |= end_of(&request) > size;
            state.commands.add(request, channel, &self.disk);
            if at_rest {
                self.hurry(state, channel);
            }
        }
        match beyond {
            // The time for this does not depend on `reconnect-delay`, because the server is there.
            true => self.replace(state),
            false => self.send(state),
        }
        drop(guard);
        self.complete();
    }

    fn give_up_soon(&self, channel: u64) {
        let mut state = self.state.borrow_mut();
        self.hurry(&mut state, channel);
        let is_over = !state.commands.done.is_empty();
        drop(state);
        if is_over {
            self.complete();
        }
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
