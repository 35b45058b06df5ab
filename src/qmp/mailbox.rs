//! The queue of events and answers for the monitor thread. Any thread may send; the order is kept.
//!
//! A sender never waits for a client. If the monitor thread falls far behind, events are dropped and counted. Answers
//! are never dropped.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::event::{EventfdFlags, eventfd};
use serde_json::{Map, Value, json};

use super::error::{Outcome, QmpError};
use super::events::EventSpec;

/// Maximum number of events that wait for the monitor thread.
const MAX_WAITING_EVENTS: usize = 4096;

/// An item for the monitor thread.
#[derive(Debug)]
pub(super) enum Item {
    Event(Event),
    /// The outcome of a command whose client waits for it.
    Answer {
        client: u64,
        outcome: Outcome,
    },
    /// A request to send the remaining output, and end.
    Stop,
}

/// An event for all clients.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) spec: &'static EventSpec,
    pub(super) data: Map<String, Value>,
    /// Time since the epoch.
    pub(super) time: Duration,
}

impl Event {
    pub(super) fn to_message(&self) -> Value {
        let mut message = json!({
            "event": self.spec.name,
            "timestamp": {"seconds": self.time.as_secs(), "microseconds": self.time.subsec_micros()},
        });
        if !self.data.is_empty() {
            message["data"] = self.data.clone().into();
        }
        message
    }
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
}

impl Mailbox {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            queue: Mutex::default(),
            wake: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
        })
    }

    fn push(&self, item: Item) {
        let mut queue = self.lock();
        match item {
            Item::Event(_) if queue.items.len() >= MAX_WAITING_EVENTS => queue.dropped += 1,
            item => queue.items.push_back(item),
        }
        drop(queue);
        // Fails only if the counter is full, and then the eventfd is readable already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Takes all queued items. Also returns the number of events that were dropped since the last call.
    pub(super) fn take(&self) -> (VecDeque<Item>, u64) {
        // Reset before the queue is read: a later push makes the eventfd readable again.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        let queue = std::mem::take(&mut *self.lock());
        (queue.items, queue.dropped)
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
        self.0.push(Item::Event(Event { spec, data, time }));
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
