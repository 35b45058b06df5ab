//! Local tasks: futures that run on the context's thread. Each is woken through its own bottom half.

use std::cell::{Cell, OnceCell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

use super::bh_word::BhHandle;
use super::bottom_half::BottomHalf;
use super::context::AioContext;

/// A future and its waker, owned by the callback of its bottom half.
struct Task {
    /// `None` while the future is being polled, and after it has finished.
    future: Cell<Option<Pin<Box<dyn Future<Output = ()>>>>>,
    /// The task was woken while an outer pass was polling it.
    woken: Cell<bool>,
    /// `None` after the future has finished.
    bh: RefCell<Option<BottomHalf>>,
    waker: Waker,
}

struct BhWaker(BhHandle);

impl Wake for BhWaker {
    fn wake(self: Arc<Self>) {
        self.0.schedule();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.schedule();
    }
}

impl Task {
    fn run(&self) {
        let Some(mut future) = self.future.take() else {
            self.woken.set(true);
            return;
        };
        if future
            .as_mut()
            .poll(&mut Context::from_waker(&self.waker))
            .is_ready()
        {
            drop(future);
            // Deletes the callback, which frees the task once this run ends.
            let bh = self.bh.take();
            drop(bh);
            return;
        }
        self.future.set(Some(future));
        if self.woken.take() {
            self.waker.wake_by_ref();
        }
    }
}

impl AioContext {
    /// Runs `future` on this context, starting with the next pass.
    pub fn spawn_local(&self, future: impl Future<Output = ()> + 'static) {
        spawn(self, future);
    }

    /// Runs the loop until `future` is done.
    pub fn block_on<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> T {
        let result = Rc::new(RefCell::new(None));
        let slot = Rc::clone(&result);
        self.spawn_local(async move {
            let value = future.await;
            slot.replace(Some(value));
        });
        loop {
            if let Some(value) = result.take() {
                return value;
            }
            self.poll(true);
        }
    }
}

/// Makes the context run `future`, starting with its next pass.
fn spawn(ctx: &AioContext, future: impl Future<Output = ()> + 'static) {
    let task = Rc::new(OnceCell::<Task>::new());
    let bh = ctx.bottom_half({
        let task = Rc::clone(&task);
        move || task.get().expect("set before it is first scheduled").run()
    });
    let waker = Waker::from(Arc::new(BhWaker(bh.handle())));
    let task = task.get_or_init(|| Task {
        future: Cell::new(Some(Box::pin(future))),
        woken: Cell::new(false),
        bh: RefCell::new(Some(bh)),
        waker,
    });
    task.waker.wake_by_ref();
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn finished_tasks_free_their_bottom_halves() {
        let ctx = AioContext::new().unwrap();
        for _ in 0..200 {
            ctx.spawn_local(async {});
            ctx.poll(true);
        }
        assert_eq!(
            ctx.inner.bottom_halves.capacity(),
            64,
            "one word suffices for one task at a time"
        );
    }
}
