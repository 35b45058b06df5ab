//! Operations on a disk that other threads request. Only an IOThread starts them, and it never blocks.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use super::channel::Channel;
use crate::aio::{AioContext, Gone, Remote};
use crate::defer::DeferScope;
use crate::io::{Completer, IoOp, IoRequest};

/// The channel for operations that other threads request. IOThread only.
#[derive(Debug)]
pub struct ControlChannel(RefCell<Channel>);

impl ControlChannel {
    /// Makes later operations use `channel`.
    pub fn replace(&self, channel: Channel) {
        let old = self.0.replace(channel);
        drop(old);
    }
}

/// A handle to a channel on an IOThread. Any thread.
#[derive(Debug)]
pub struct NodeControl {
    channel: Remote<ControlChannel>,
    /// Number of operations that have not ended.
    pending: Arc<AtomicUsize>,
}

/// The completer of a single request.
struct Once<F>(Cell<Option<F>>);

impl<F: FnOnce(io::Result<()>)> Completer for Once<F> {
    fn complete(&self, request: Box<IoRequest>) {
        if let Some(done) = self.0.take() {
            done(request.result);
        }
    }
}

/// Counts an operation until this is dropped.
struct Pending(Arc<AtomicUsize>);

impl Pending {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl NodeControl {
    /// Creates a handle to `channel`, and the place where the channel can be replaced. Call this on the IOThread to
    /// which `ctx` belongs.
    pub fn new(ctx: &AioContext, channel: Channel) -> (Self, Rc<ControlChannel>) {
        let place = Rc::new(ControlChannel(RefCell::new(channel)));
        let channel = Remote::new(ctx, Rc::clone(&place));
        let pending = Arc::default();
        (Self { channel, pending }, place)
    }

    /// Starts an operation without memory or ranges, such as a flush. `done` is called with the result, on the
    /// IOThread.
    ///
    /// # Errors
    /// The IOThread has ended. `done` is not called.
    pub fn submit(&self, op: IoOp, done: impl FnOnce(io::Result<()>) + Send + 'static) -> Result<(), Gone> {
        let pending = Pending::new(&self.pending);
        let done = move |result| {
            done(result);
            drop(pending);
        };
        self.channel.post(move |channel| {
            let _scope = DeferScope::enter();
            let mut request = IoRequest::new();
            request.op = op;
            let completer = Rc::new(Once(Cell::new(Some(done)))) as Rc<dyn Completer>;
            channel.0.borrow().submit(&mut vec![request], &completer);
        })
    }

    /// Returns whether an operation has not ended. Any thread.
    pub fn is_busy(&self) -> bool {
        // Relaxed: no other data depends on this number.
        self.pending.load(Ordering::Relaxed) > 0
    }

    /// Waits until all operations have ended. Any thread but an IOThread. Call it before the channel is dropped. A server
    /// that does not answer is not waited for.
    pub fn wait_until_idle(&self) {
        let hurry = |channel: &Rc<ControlChannel>| {
            let _scope = DeferScope::enter();
            channel.0.borrow().give_up_soon();
        };
        if self.is_busy() {
            // Fails if the IOThread has ended, and its operations with it.
            let _ = self.channel.post(hurry);
        }
        // Looks again and again, because only the end of a disk waits, and hardly ever.
        while self.is_busy() {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Like [`submit`](Self::submit), but returns a receiver of the result.
    ///
    /// # Errors
    /// The IOThread has ended.
    pub fn start(&self, op: IoOp) -> Result<Receiver<io::Result<()>>, Gone> {
        let (reply, result) = mpsc::sync_channel(1);
        self.submit(op, move |result| {
            // The caller may have stopped waiting.
            let _ = reply.send(result);
        })?;
        Ok(result)
    }

    /// Executes an operation and waits for its end. Any thread but an IOThread.
    ///
    /// # Errors
    /// The operation failed, or the IOThread has ended.
    pub fn run(&self, op: IoOp) -> io::Result<()> {
        let result = self.start(op).map_err(io::Error::other)?;
        result.recv().map_err(|_| io::Error::other(Gone))?
    }
}
