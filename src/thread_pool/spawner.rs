//! The spawner: creates the threads of a pool.

use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::{fmt, io};

type Body = Box<dyn FnOnce() + Send>;
type Spawn = dyn Fn(String, Body) -> io::Result<JoinHandle<()>> + Send + Sync;

/// Creates threads. A sandbox supplies its own spawner, and tests supply spawners that fail.
#[derive(Clone)]
pub struct Spawner(Arc<Spawn>);

impl Spawner {
    /// Makes a spawner that calls `spawn` with a thread's name and body.
    pub fn new(spawn: impl Fn(String, Body) -> io::Result<JoinHandle<()>> + Send + Sync + 'static) -> Self {
        Self(Arc::new(spawn))
    }

    /// Creates a thread called `name` that runs `body`.
    ///
    /// # Errors
    ///
    /// The operating system cannot create the thread.
    pub fn spawn(&self, name: String, body: Body) -> io::Result<JoinHandle<()>> {
        (self.0)(name, body)
    }
}

impl Default for Spawner {
    fn default() -> Self {
        Self::new(|name, body| Builder::new().name(name).spawn(body))
    }
}

impl fmt::Debug for Spawner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Spawner")
    }
}
