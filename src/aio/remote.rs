//! A handle to something that lives on another thread's context.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::mpsc;

use super::{AioContext, BhHandle, BottomHalf};

type Call<T> = Box<dyn FnOnce(&Rc<T>) + Send>;

/// The context's thread has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the IOThread has ended")]
pub struct Gone;

/// Runs closures on a `T` that never leaves its context's thread, in the order in which they were sent.
///
/// The `T` is released, on its thread, some time after the handle is dropped.
pub struct Remote<T> {
    calls: Option<mpsc::Sender<Call<T>>>,
    wake: BhHandle,
}

impl<T> std::fmt::Debug for Remote<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").finish_non_exhaustive()
    }
}

impl<T: 'static> Remote<T> {
    /// Makes `target` reachable from other threads. To be called on the context's thread.
    pub fn new(ctx: &AioContext, target: Rc<T>) -> Self {
        let (calls, inbox) = mpsc::channel::<Call<T>>();
        let me: Rc<Cell<Option<BottomHalf>>> = Rc::default();
        let own = Rc::clone(&me);
        let bh = ctx.bottom_half(move |_| {
            loop {
                match inbox.try_recv() {
                    Ok(call) => call(&target),
                    Err(mpsc::TryRecvError::Empty) => break,
                    // The handle is gone: so are this bottom half and its hold on the target.
                    Err(mpsc::TryRecvError::Disconnected) => return drop(own.take()),
                }
            }
        });
        let wake = bh.handle();
        me.set(Some(bh));
        Self {
            calls: Some(calls),
            wake,
        }
    }

    /// Has `f` run on the target's thread. Any thread.
    ///
    /// # Errors
    /// [`Gone`]; `f` does not run then.
    pub fn post(&self, f: impl FnOnce(&Rc<T>) + Send + 'static) -> Result<(), Gone> {
        self.calls
            .as_ref()
            .ok_or(Gone)?
            .send(Box::new(f))
            .map_err(|_| Gone)?;
        self.wake.schedule();
        Ok(())
    }

    /// Has `f` run on the target's thread and waits for its result. Any other thread.
    ///
    /// # Errors
    /// [`Gone`].
    pub fn call<R: Send + 'static>(&self, f: impl FnOnce(&Rc<T>) -> R + Send + 'static) -> Result<R, Gone> {
        let (reply, result) = mpsc::sync_channel(1);
        self.post(move |target| {
            // A caller that no longer waits is none of our business.
            let _ = reply.send(f(target));
        })?;
        result.recv().map_err(|_| Gone)
    }
}

impl<T> Drop for Remote<T> {
    fn drop(&mut self) {
        self.calls = None;
        self.wake.schedule();
    }
}
