//! The handle with which other threads reach a context.

use std::fmt;

use super::bh_word::BhHandle;
use super::context::{AioContext, Shared};
use super::error::Error;
use super::figures::LoopFigures;
use crate::sync::Arc;

/// Wakes a context and sends it work. Any thread may use the handle.
#[derive(Clone)]
pub struct AioHandle {
    shared: Arc<Shared>,
    commands: BhHandle,
}

impl AioContext {
    /// Returns the handle with which other threads reach this context.
    #[must_use]
    pub fn handle(&self) -> AioHandle {
        AioHandle {
            shared: Arc::clone(&self.inner.shared),
            commands: self.inner.commands().handle(),
        }
    }
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
