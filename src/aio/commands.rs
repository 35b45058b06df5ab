//! Commands that other threads send to a context.

use std::collections::VecDeque;

use crate::sync::{Mutex, lock};

/// A queue that can be closed for good.
#[derive(Debug)]
pub(super) struct CommandQueue<C> {
    /// `None` once closed.
    queue: Mutex<Option<VecDeque<C>>>,
}

impl<C> CommandQueue<C> {
    pub(super) fn new() -> Self {
        Self {
            queue: Mutex::new(Some(VecDeque::new())),
        }
    }

    /// Appends `command`, or gives it back if the queue is closed.
    pub(super) fn push(&self, command: C) -> Result<(), C> {
        match lock(&self.queue).as_mut() {
            Some(queue) => {
                queue.push_back(command);
                Ok(())
            }
            None => Err(command),
        }
    }

    /// Takes the first command, and returns whether there are more.
    pub(super) fn pop(&self) -> Option<(C, bool)> {
        let mut guard = lock(&self.queue);
        let queue = guard.as_mut()?;
        let command = queue.pop_front()?;
        Some((command, !queue.is_empty()))
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.queue).as_ref().map_or(0, VecDeque::len)
    }

    /// Closes the queue and returns the commands left in it.
    pub(super) fn close(&self) -> VecDeque<C> {
        lock(&self.queue).take().unwrap_or_default()
    }
}
