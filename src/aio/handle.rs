//! The handle with which other threads reach a context.

use std::collections::VecDeque;
use std::fmt;

use super::bh_word::BhHandle;
use super::figures::LoopFigures;
use super::notify::Notify;
use super::{AioContext, Error};
use crate::sync::{Arc, Mutex, lock};

pub(super) type Command = Box<dyn FnOnce(&AioContext) + Send>;

/// The part of a context that other threads may touch.
pub(super) struct Shared {
    pub(super) notify: Arc<Notify>,
    pub(super) commands: CommandQueue<Command>,
    pub(super) figures: std::sync::Arc<LoopFigures>,
}

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

/// Wakes a context and sends it work. Any thread may use the handle.
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

    /// Returns the context's figures, which outlive it.
    #[must_use]
    pub fn figures(&self) -> std::sync::Arc<LoopFigures> {
        std::sync::Arc::clone(&self.shared.figures)
    }

    /// Runs `command` once on the context's thread, after all commands sent before it.
    ///
    /// If the context ends before that, it drops `command` without running it.
    ///
    /// # Errors
    ///
    /// The context has ended.
    pub fn run_on_context(&self, command: impl FnOnce(&AioContext) + Send + 'static) -> Result<(), Error> {
        self.shared
            .commands
            .push(Box::new(command))
            .map_err(|_| Error::ContextGone)?;
        self.commands.schedule();
        Ok(())
    }
}

impl fmt::Debug for AioHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AioHandle").finish_non_exhaustive()
    }
}
