//! Access to the registry of the main thread, for other threads.

use super::registry::{Call, Registry};
use super::signals::Caller;

/// Runs operations on the registry of the main thread. Any thread. Clones reach the same registry.
#[derive(Clone)]
pub struct Handle(Caller<Message>);

impl Handle {
    pub(super) fn new(caller: Caller<Message>) -> Self {
        Self(caller)
    }

    /// Makes the main thread run `call` soon, after earlier calls. If the process ends first, the call does not run.
    pub fn call(&self, call: impl FnOnce(&mut Registry) + Send + 'static) {
        self.0.send(Message::Call(Box::new(call)));
    }

    /// Ends the process, as SIGTERM does.
    pub fn quit(&self) {
        self.0.send(Message::Quit);
    }
}

/// The messages that other threads send to the main thread.
pub(super) enum Message {
    /// A disk's control thread has ended.
    DiskEnded,
    Call(Call),
    Quit,
}
