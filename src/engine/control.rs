//! Operations on a disk that other threads ask for: nobody but an IOThread executes anything, and nobody blocks.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::mpsc::{self, Receiver};

use super::channel::Channel;
use crate::aio::{AioContext, Gone, Remote};
use crate::defer::DeferScope;
use crate::io::{Completer, IoOp, IoRequest};

/// A handle to a channel on an IOThread. Any thread.
#[derive(Debug)]
pub struct NodeControl {
    channel: Remote<Channel>,
}

/// Takes the one request back.
struct Once<F>(Cell<Option<F>>);

impl<F: FnOnce(io::Result<()>)> Completer for Once<F> {
    fn complete(&self, request: Box<IoRequest>) {
        if let Some(done) = self.0.take() {
            done(request.result);
        }
    }
}

impl NodeControl {
    /// Makes a handle to `channel`. To be called on the IOThread, whose context `ctx` is.
    pub fn new(ctx: &AioContext, channel: Channel) -> Self {
        Self {
            channel: Remote::new(ctx, Rc::new(channel)),
        }
    }

    /// Starts an operation without memory or ranges, such as a flush; `done` gets the result, on the IOThread.
    ///
    /// # Errors
    /// The IOThread has ended; `done` is not called.
    pub fn submit(&self, op: IoOp, done: impl FnOnce(io::Result<()>) + Send + 'static) -> Result<(), Gone> {
        self.channel.post(move |channel| {
            let _scope = DeferScope::enter();
            let mut request = IoRequest::new();
            request.op = op;
            let completer = Rc::new(Once(Cell::new(Some(done)))) as Rc<dyn Completer>;
            channel.submit(&mut vec![request], &completer);
        })
    }

    /// As [`submit`](Self::submit), for somebody who waits; how, is up to the caller.
    ///
    /// # Errors
    /// The IOThread has ended.
    pub fn start(&self, op: IoOp) -> Result<Receiver<io::Result<()>>, Gone> {
        let (reply, result) = mpsc::sync_channel(1);
        self.submit(op, move |result| {
            // A caller that no longer waits has no use for it.
            let _ = reply.send(result);
        })?;
        Ok(result)
    }

    /// Executes an operation, and waits for it as long as it takes. Not on an IOThread.
    ///
    /// # Errors
    /// Those of the operation; or the IOThread has ended.
    pub fn run(&self, op: IoOp) -> io::Result<()> {
        let result = self.start(op).map_err(io::Error::other)?;
        result.recv().map_err(|_| io::Error::other(Gone))?
    }
}
