//! How I/O is executed: a request is handed down, and comes back to whoever handed it down.
//!
//! An [`Engine`] serves one storage from one IOThread. [`Engine::submit`] takes a batch of requests; each comes back
//! exactly once, on the same IOThread, through the [`Completer`] it carries. Nothing assumes that it took a thread.

mod inline;
mod request;
mod threads;

pub use request::{Completer, IoOp, IoRange, IoRequest};
pub use threads::ThreadsEngine;

/// Requests on their way. Boxed, because they move on one by one and are recycled.
#[allow(clippy::vec_box, reason = "each box is handed on as it is")]
pub type Requests = Vec<Box<IoRequest>>;

/// The closed set of engines.
#[derive(Debug)]
pub enum Engine {
    /// Blocking calls in the IOThread's thread pool.
    Threads(ThreadsEngine),
}

impl Engine {
    /// Starts every request of the batch, and leaves the list empty. IOThread only.
    pub fn submit(&self, batch: &mut Requests) {
        match self {
            Self::Threads(engine) => engine.submit(batch),
        }
    }
}
