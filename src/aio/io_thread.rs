//! IOThreads: threads that run an event loop.

use std::cell::Cell;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::thread::gettid;

use super::adaptive::PollWindow;
use super::{AioContext, AioHandle, Error};
use crate::panics::Panic;

/// The settings of an IOThread.
#[derive(Clone, Copy, Debug)]
pub struct IoThreadConfig {
    /// `poll-max-ns`: the longest time to poll before blocking. Zero turns polling off.
    pub poll_max: Duration,
}

impl Default for IoThreadConfig {
    fn default() -> Self {
        Self {
            poll_max: PollWindow::DEFAULT_MAX,
        }
    }
}

/// A thread and its [`AioContext`]. Dropping the `IoThread` stops and joins the thread, so that thread itself must not
/// drop it.
///
/// A panic in a callback ends the thread, and [`stop`](Self::stop) reports the panic. A process that cannot continue
/// without the thread uses [`panics`](crate::panics).
#[derive(Debug)]
pub struct IoThread {
    handle: AioHandle,
    thread_id: i32,
    /// `None` once joined.
    thread: Option<JoinHandle<()>>,
}

impl IoThread {
    /// Starts a thread called `name`. The kernel shows only the first 15 bytes of the name.
    ///
    /// # Errors
    ///
    /// The thread or its context cannot be created.
    pub fn spawn(name: &str, config: IoThreadConfig) -> Result<Self, Error> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let body = move || {
            let ctx = match AioContext::new() {
                Ok(ctx) => ctx,
                Err(err) => {
                    let _ = sender.send(Err(err));
                    return;
                }
            };
            ctx.set_poll_max(config.poll_max);
            let _ = sender.send(Ok((ctx.handle(), gettid().as_raw_pid())));
            drop(sender);
            run(&ctx);
        };
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(body)
            .map_err(|source| Error::Spawn {
                name: name.to_owned(),
                source,
            })?;
        let (handle, thread_id) = receiver.recv().expect("the thread sends before anything else")?;
        Ok(Self {
            handle,
            thread_id,
            thread: Some(thread),
        })
    }

    /// Returns the handle with which other threads reach the thread's context.
    #[must_use]
    pub fn handle(&self) -> AioHandle {
        self.handle.clone()
    }

    /// Returns the kernel's thread id (`gettid`), for pinning the thread to CPUs.
    #[must_use]
    pub fn thread_id(&self) -> i32 {
        self.thread_id
    }

    /// Runs everything that was sent or scheduled before, then ends the thread and its context.
    ///
    /// # Errors
    ///
    /// A callback panicked.
    pub fn stop(mut self) -> Result<(), Panic> {
        self.join()
    }

    fn join(&mut self) -> Result<(), Panic> {
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        // Fails only if the thread has already ended; the join then returns the reason.
        let _ = self.handle.run_on_context(|_| STOP.set(true));
        thread.join()
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        // The panic was already logged.
        let _ = self.join();
    }
}

thread_local! {
    /// Returns whether this thread, an IOThread, was told to stop.
    static STOP: Cell<bool> = const { Cell::new(false) };
}

fn run(ctx: &AioContext) {
    while !STOP.get() {
        ctx.poll(true);
    }
}
