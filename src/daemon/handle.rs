//! Access to the registry of the main thread, for other threads.

use super::registry::{Call, Registry};
use super::signals::Caller;
use super::succession::Step;

/// Runs operations on the registry of the main thread. Any thread. Clones reach the same registry.
#[derive(Clone)]
pub struct Handle(Caller<Message>);

impl Handle {
    pub(super) fn new(caller: Caller<Message>) -> Self {
        Self(caller)
    }

    /// Makes the main thread run `query` soon. As [`call`](Self::call), but it also runs while another process takes over and
    /// changes wait.
    pub fn query(&self, query: impl FnOnce(&Registry) + Send + 'static) {
        self.0.send(Message::Query(Box::new(query)));
    }

    /// Makes the main thread run `call` soon, after earlier calls. If the process ends first, the call does not run.
    pub fn call(&self, call: impl FnOnce(&mut Registry) + Send + 'static) {
        self.0.send(Message::Call(Box::new(call)));
    }

    /// Makes the main thread take a step of a take-over.
    pub(super) fn hand_over(&self, step: Step) {
        self.0.send(Message::HandOver(step));
    }

    /// Ends the process, as SIGTERM does.
    pub fn quit(&self) {
        self.0.send(Message::Quit);
    }
}

/// A look at the registry.
pub(super) type Query = Box<dyn FnOnce(&Registry) + Send>;

/// The reason for the end when a QMP client asks for it.
pub(super) const QUIT: &str = "quit";

/// The messages that other threads send to the main thread.
pub(super) enum Message {
    /// A disk's control thread has ended.
    DiskEnded,
    /// Changes nothing.
    Query(Query),
    Call(Call),
    HandOver(Step),
    Quit,
}
