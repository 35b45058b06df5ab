//! IOThreads: a thread that runs an event loop.

use std::{
    cell::Cell,
    sync::mpsc,
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{AioContext, AioHandle, Error, adaptive::PollWindow};
use crate::panics::Panic;

/// How an IOThread behaves.
#[derive(Clone, Copy, Debug)]
pub struct IoThreadConfig {
    /// `poll-max-ns`: how long to poll at most before blocking; zero turns polling off.
    pub poll_max: Duration,
}

impl Default for IoThreadConfig {
    fn default() -> Self {
        Self {
            poll_max: PollWindow::DEFAULT_MAX,
        }
    }
}

/// A thread and its [`AioContext`]. Dropping it stops and joins the thread; not to be done on that thread itself.
///
/// A callback that panics ends the thread, which [`stop`](Self::stop) then reports; see [`panics`](crate::panics) for a
/// process that must not live on without it.
#[derive(Debug)]
pub struct IoThread {
    handle: AioHandle,
    thread_id: i32,
    /// `None` once joined.
    thread: Option<JoinHandle<()>>,
}

impl IoThread {
    /// Starts a thread called `name`, of which the kernel shows 15 bytes.
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
            let _ = sender.send(Ok((ctx.handle(), current_thread_id())));
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

    /// What other threads talk to its context with.
    #[must_use]
    pub fn handle(&self) -> AioHandle {
        self.handle.clone()
    }

    /// The kernel's thread id (`gettid`), for pinning it to CPUs.
    #[must_use]
    pub fn thread_id(&self) -> i32 {
        self.thread_id
    }

    /// Runs everything sent or scheduled before, then ends the thread and its context.
    ///
    /// # Errors
    ///
    /// A callback has panicked.
    pub fn stop(mut self) -> Result<(), Panic> {
        self.join()
    }

    fn join(&mut self) -> Result<(), Panic> {
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        // Fails only if the thread has ended already, which the join will tell.
        let _ = self.handle.run_on_context(|_| STOP.set(true));
        thread.join()
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        // The panic has left a message.
        let _ = self.join();
    }
}

thread_local! {
    /// The IOThread of this thread has been told to stop.
    static STOP: Cell<bool> = const { Cell::new(false) };
}

fn run(ctx: &AioContext) {
    while !STOP.get() {
        ctx.poll(true);
    }
}

fn current_thread_id() -> i32 {
    // SAFETY: gettid takes nothing, touches no memory and always succeeds.
    unsafe { libc::gettid() }
}
