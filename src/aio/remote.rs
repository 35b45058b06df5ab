//! A handle to an object that lives on another thread's context.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::mpsc;

use super::bh_word::BhHandle;
use super::bottom_half::BottomHalf;
use super::context::AioContext;

type Call<T> = Box<dyn FnOnce(&Rc<T>) + Send>;

/// The context's thread has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the IOThread has ended")]
pub struct Gone;

/// Runs closures, in the order they were sent, on a `T` that never leaves its context's thread.
///
/// After the handle is dropped, the context's thread releases its reference to the `T`.
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
    /// Makes `target` reachable from other threads. Must be called on the context's thread.
    pub fn new(ctx: &AioContext, target: Rc<T>) -> Self {
        let (calls, inbox) = mpsc::channel::<Call<T>>();
        let me: Rc<Cell<Option<BottomHalf>>> = Rc::default();
        let own = Rc::clone(&me);
        let bh = ctx.bottom_half(move || {
            loop {
                match inbox.try_recv() {
                    Ok(call) => call(&target),
                    Err(mpsc::TryRecvError::Empty) => break,
                    // The handle was dropped: delete this bottom half, and with it the reference to the target.
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

    /// Makes the target's thread run `f`, without waiting. Any thread may call this.
    ///
    /// # Errors
    /// The target's context has ended; `f` does not run.
    pub fn post(&self, f: impl FnOnce(&Rc<T>) + Send + 'static) -> Result<(), Gone> {
        self.calls
            .as_ref()
            .ok_or(Gone)?
            .send(Box::new(f))
            .map_err(|_| Gone)?;
        self.wake.schedule();
        Ok(())
    }

    /// Makes the target's thread run `f` and waits for the result. Any thread but the target's may call this.
    ///
    /// # Errors
    /// The target's context ended before `f` returned.
    pub fn call<R: Send + 'static>(&self, f: impl FnOnce(&Rc<T>) -> R + Send + 'static) -> Result<R, Gone> {
        let (reply, result) = mpsc::sync_channel(1);
        self.post(move |target| {
            // Fails only if the caller no longer waits, which does no harm.
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
