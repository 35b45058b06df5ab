//! The connection of a link: how it is lost, and how another one is made. IOThread only.

use std::io;
use std::rc::Weak;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::incoming::Incoming;
use super::link::{Connection, Link, State};
use super::lost::Lost;
use super::outgoing::Outgoing;
use crate::aio::EventSet;
use crate::defer::DeferScope;
use crate::engine::error::Error;
use crate::engine::pace::Pace;
use crate::io::IoRequest;
use crate::nbd::{ATTEMPT_TIME, Connected};

/// The pause after the first attempt to connect that failed. It doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(2);

impl Link {
    /// Closes the connection, which is of no use any more.
    pub(super) fn disconnect(&self, state: &mut State, why: &Lost) {
        if state.connection.take().is_some() {
            state.replacing = why.is_ours();
            if let Some(suppressed) = self.log.pass_normal("lost", "") {
                let disk = self.disk.path().display();
                tracing::warn!(%disk, %why, suppressed, "lost the connection to the server: connecting again");
            }
        }
        state.commands.rewind();
    }

    /// Connects again, and waits for that as long as the disk's options say.
    pub(super) fn lose(&self, state: &mut State, why: &Lost) {
        self.disconnect(state, why);
        self.wait(state);
        match state.pause.is_zero() {
            true => {
                state.pause = FIRST_PAUSE;
                self.ask(state);
            }
            // The last connection brought nothing.
            false => self.pause(state),
        }
    }

    /// Lets requests wait as long as the disk's options say, and for the first attempt to replace a connection that this
    /// end has closed.
    fn wait(&self, state: &mut State) {
        let now = Instant::now();
        let end = *state.outage.get_or_insert(now) + self.patience_time(state);
        let end = match state.replacing {
            // The attempt ends by itself before that.
            true => end.max(now + LAST_PAUSE + ATTEMPT_TIME),
            false => end,
        };
        if state.failing || end <= now {
            self.fail(state);
        } else {
            self.patience.arm(end);
        }
    }

    /// An attempt to connect has failed. Tries again later.
    fn attempt_failed(&self, state: &mut State, why: String) {
        self.tell(state, why);
        if std::mem::take(&mut state.replacing) {
            self.wait(state);
        }
        self.pause(state);
    }

    /// Makes a connection that knows the present size of the export in place of one that does not.
    pub(super) fn replace(&self, state: &mut State) {
        // As at the start: requests wait for it even without `reconnect-delay`.
        state.had_one = false;
        self.lose(state, &Lost::Outgrown);
    }

    /// Returns how long requests wait for the server.
    pub(super) fn patience_time(&self, state: &State) -> Duration {
        let delay = self.disk.options().reconnect_delay;
        match state.had_one {
            true => delay,
            false => delay.max(ATTEMPT_TIME),
        }
    }

    pub(super) fn lose_patience(&self) {
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
            let waited = state.outage.map_or(0, |outage| outage.elapsed().as_secs());
            tracing::error!(
                disk = %self.disk.path().display(), waited,
                "the server is away: requests fail until it is back"
            );
        }
        state.commands.fail_all(libc::EIO, |_| true);
    }

    /// Asks for a connection.
    pub(super) fn ask(&self, state: &mut State) {
        if state.asked.is_some() || (state.connection.is_some() && state.sizing.is_empty()) {
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
                let why = format!("the process that connects to it cannot be asked: {error}");
                Self::give_size(state, Err(&why));
                if state.connection.is_none() {
                    self.attempt_failed(state, why);
                }
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
        if state.connection.is_some() {
            // The question was about the size only.
            let size = answer.and_then(|connected| self.accept(state, &connected));
            Self::give_size(state, size.as_ref().map(drop).map_err(String::as_str));
        } else if let Ok(connected) = &answer
            && connected.is_beside(state.last)
        {
            // The answer to another IOThread. The connector did not know yet that our last connection has ended.
            drop((answer, handler));
            return self.ask(state);
        } else {
            self.resume(state, answer);
        }
        if !state.size_later.is_empty() {
            state.sizing = std::mem::take(&mut state.size_later);
            self.ask(state);
        }
        drop(guard);
        drop(handler);
        self.complete();
    }

    /// Goes on with the connection that was made, or tries again later.
    fn resume(&self, state: &mut State, answer: Result<Connected, String>) {
        let connected = answer.and_then(|connected| {
            self.accept(state, &connected)?;
            self.connect(state, connected).map_err(|error| error.to_string())
        });
        Self::give_size(state, connected.as_ref().map(drop).map_err(String::as_str));
        match connected {
            Ok(()) => {
                state.told.clear();
                tracing::info!(disk = %self.disk.path().display(), "connected to the server");
                self.send(state);
            }
            Err(why) => self.attempt_failed(state, why),
        }
    }

    /// Checks an export, and takes over its size.
    fn accept(&self, state: &mut State, connected: &Connected) -> Result<(), String> {
        let accepted = self.disk.accept(&connected.export);
        state.resized |= accepted.map_err(|why| format!("its export has changed: {why}"))?;
        Ok(())
    }

    /// Asks the server for the size, over a connection of its own.
    pub(super) fn refresh_size(&self, state: &mut State, request: Box<IoRequest>) {
        // The answer to a question that was asked before may have an old size.
        if state.asked.is_some() {
            return state.size_later.push(request);
        }
        state.sizing.push(request);
        self.ask(state);
    }

    /// Completes the requests for the size.
    pub(super) fn give_size(state: &mut State, result: Result<(), &str>) {
        for mut request in state.sizing.drain(..) {
            request.result = result.map_err(io::Error::other);
            state.commands.done.push(request);
        }
    }

    /// Uses a new connection.
    pub(super) fn connect(&self, state: &mut State, connected: Connected) -> Result<(), Error> {
        let (replies, size) = (connected.export.replies, connected.export.size);
        let socket = Arc::new(connected.socket);
        let me = Weak::clone(&self.me);
        let on_event = move |_| {
            if let Some(link) = me.upgrade() {
                link.take_answers();
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
            gathers: false,
            pace: Pace::default(),
            size,
            ticket: connected.ticket,
        });
        (state.failing, state.had_one, state.replacing) = (false, true, false);
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
