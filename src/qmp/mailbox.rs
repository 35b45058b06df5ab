//! Events and answers on their way to the monitor thread, in order, from any thread.
//!
//! A sender never waits for a client. If the monitor thread falls far behind, events are dropped and counted; answers
//! never are.

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
    /// The outcome of the command that a client waits for.
    Answer {
        client: u64,
        outcome: Outcome,
    },
    /// Send what is left to send, and end.
    Stop,
}

/// Something that happened, for every client.
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

    /// Takes everything that is queued. Also returns the number of events that were dropped since the last call.
    pub(super) fn take(&self) -> (VecDeque<Item>, u64) {
        // Before the queue: what is pushed later makes the eventfd readable again.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        let queue = std::mem::take(&mut *self.lock());
        (queue.items, queue.dropped)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // A push is complete or has not begun, also after a panic.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Mailbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// Tells clients what happens, and ends the monitor. Any thread. Clones tell the same clients.
#[derive(Clone, Debug)]
pub struct Events(Arc<Mailbox>);

impl Events {
    pub(super) fn new(mailbox: Arc<Mailbox>) -> Self {
        Self(mailbox)
    }

    /// Tells all clients about an event. `data` is an object of the event's type.
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

/// The right and the duty to answer one command, once, from any thread.
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

    /// Answers the command. Events that were emitted earlier are sent earlier.
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
    /// A client that gets no answer would wait for ever.
    fn drop(&mut self) {
        if !self.answered {
            self.answer(Err(QmpError::generic(
                "The command was abandoned: the process is ending",
            )));
        }
    }
}
