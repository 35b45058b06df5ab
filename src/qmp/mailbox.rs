//! The queue of events and answers for the monitor thread. Any thread may send; the order is kept.
//!
//! A sender never waits for a client. Repeated events are limited here, so that they do not wake the monitor thread. If it
//! falls far behind, events are dropped and counted. Answers are never dropped.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use rustix::event::{EventfdFlags, eventfd};
use serde_json::{Map, Value};

use super::error::{Outcome, QmpError};
use super::events::{Event, EventSpec};
use super::limiter::Limiter;

/// Maximum number of events that wait for the monitor thread.
const MAX_WAITING_EVENTS: usize = 4096;

/// An item for the monitor thread.
#[derive(Debug)]
pub(super) enum Item {
    /// An event that must be sent now.
    Event(Event),
    /// The outcome of a command whose client waits for it.
    Answer { client: u64, outcome: Outcome },
    /// A request to send the remaining output, and end.
    Stop,
}

/// The monitor thread's queue.
#[derive(Debug)]
pub(super) struct Mailbox {
    queue: Mutex<Queue>,
    /// Readable while something may be queued.
    wake: OwnedFd,
}

#[derive(Debug, Default)]
struct Queue {
    items: VecDeque<Item>,
    dropped: u64,
    limiter: Limiter,
}

impl Mailbox {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            queue: Mutex::default(),
            wake: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
        })
    }

    fn push(&self, item: Item) {
        self.lock().items.push_back(item);
        self.wake();
    }

    fn push_event(&self, event: Event, now: Instant) {
        let mut queue = self.lock();
        // The monitor thread knows the end of the interval since the first event, and looks then.
        let Some(event) = queue.limiter.pass(event, now) else {
            return;
        };
        match queue.items.len() >= MAX_WAITING_EVENTS {
            true => queue.dropped += 1,
            false => queue.items.push_back(Item::Event(event)),
        }
        drop(queue);
        self.wake();
    }

    fn wake(&self) {
        // Fails only if the counter is full, and then the eventfd is readable already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Takes all queued items, and the events whose interval is over. Also returns the number of events that were dropped
    /// since the last call.
    pub(super) fn take(&self, now: Instant) -> (VecDeque<Item>, u64) {
        // Reset before the queue is read: a later push makes the eventfd readable again.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        let mut queue = self.lock();
        let mut items = std::mem::take(&mut queue.items);
        // After the first event of the interval, which may still be among the items.
        items.extend(queue.limiter.expire(now).into_iter().map(Item::Event));
        (items, std::mem::take(&mut queue.dropped))
    }

    /// Returns the time of the next call to [`take`](Self::take), if it is not woken before.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.lock().limiter.deadline()
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Consistent even after a panic: a push is either complete or has not begun.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Mailbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// Sends events to all clients, and ends the monitor. Any thread. Clones reach the same clients.
#[derive(Clone, Debug)]
pub struct Events(Arc<Mailbox>);

impl Events {
    pub(super) fn new(mailbox: Arc<Mailbox>) -> Self {
        Self(mailbox)
    }

    /// Sends an event to all clients. `data` is an object of the event's type.
    pub fn emit(&self, spec: &'static EventSpec, data: Map<String, Value>) {
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let time = time.unwrap_or_default();
        self.0.push_event(Event { spec, data, time }, Instant::now());
    }

    /// Ends the monitor after it has sent what was queued before this call.
    pub fn stop(&self) {
        self.0.push(Item::Stop);
    }
}

/// The obligation to answer one command, once, from any thread.
#[derive(Debug)]
pub struct Reply {
    mailbox: Arc<Mailbox>,
    client: u64,
    answered: bool,
}

impl Reply {
    pub(super) fn new(mailbox: &Arc<Mailbox>, client: u64) -> Self {
        Self {
            mailbox: Arc::clone(mailbox),
            client,
            answered: false,
        }
    }

    /// Answers the command. Events that were emitted earlier are sent first.
    pub fn send(mut self, outcome: Outcome) {
        self.answer(outcome);
    }

    fn answer(&mut self, outcome: Outcome) {
        self.answered = true;
        let client = self.client;
        self.mailbox.push(Item::Answer { client, outcome });
    }
}

impl Drop for Reply {
    /// Without an answer, the client would wait for ever.
    fn drop(&mut self) {
        if !self.answered {
            self.answer(Err(QmpError::generic(
                "The command was abandoned: the process is ending",
            )));
        }
    }
}
