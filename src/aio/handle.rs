//! What other threads talk to a context with.

use std::{collections::VecDeque, fmt, mem};

use super::{AioContext, Error, bh_word::BhHandle, notify::Notify};
use crate::sync::{Arc, Mutex, lock};

type Command = Box<dyn FnOnce(&AioContext) + Send>;

/// The part of a context that other threads may touch.
pub(super) struct Shared {
    pub(super) notify: Arc<Notify>,
    /// `None` once the context has ended.
    commands: Mutex<Option<VecDeque<Command>>>,
}

impl Shared {
    pub(super) fn new(notify: Notify) -> Self {
        Self {
            notify: Arc::new(notify),
            commands: Mutex::new(Some(VecDeque::new())),
        }
    }

    /// Takes the next command, and says whether there are more.
    pub(super) fn next_command(&self) -> Option<(Command, bool)> {
        let mut commands = lock(&self.commands);
        let commands = commands.as_mut()?;
        let command = commands.pop_front()?;
        Some((command, !commands.is_empty()))
    }

    pub(super) fn command_count(&self) -> usize {
        lock(&self.commands).as_ref().map_or(0, VecDeque::len)
    }

    /// Refuses further commands and drops those that were not run.
    pub(super) fn close(&self) {
        let commands = mem::take(&mut *lock(&self.commands));
        drop(commands);
    }
}

/// Wakes a context and sends it work; any thread may use it.
#[derive(Clone)]
pub struct AioHandle {
    pub(super) shared: Arc<Shared>,
    pub(super) commands: BhHandle,
}

impl AioHandle {
    /// Wakes the context if it sleeps (`aio_notify`).
    pub fn notify(&self) {
        self.shared.notify.notify();
    }

    /// Runs `command` once on the context's thread, after all that were sent before it.
    ///
    /// # Errors
    ///
    /// [`Error::ContextGone`] if the context has ended. One that ends later drops `command` without running it.
    pub fn run_on_context(&self, command: impl FnOnce(&AioContext) + Send + 'static) -> Result<(), Error> {
        let command: Command = Box::new(command);
        let refused = match lock(&self.shared.commands).as_mut() {
            Some(commands) => {
                commands.push_back(command);
                None
            }
            None => Some(command),
        };
        // A refused command is dropped without the lock: it may own a handle like this one.
        if refused.is_some() {
            return Err(Error::ContextGone);
        }
        self.commands.schedule();
        Ok(())
    }
}

impl fmt::Debug for AioHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AioHandle").finish_non_exhaustive()
    }
}
