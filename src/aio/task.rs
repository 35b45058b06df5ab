//! Local tasks: futures that run on the context's thread, woken through a bottom half each.

use std::{
    cell::{Cell, OnceCell, RefCell},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Wake, Waker},
};

use super::{AioContext, BhHandle, BottomHalf};

/// A future and what wakes it, owned by the callback of its bottom half.
struct Task {
    /// `None` while it is being polled, and after its end.
    future: Cell<Option<Pin<Box<dyn Future<Output = ()>>>>>,
    /// Woken while it was being polled by a loop further out.
    woken: Cell<bool>,
    /// `None` after its end.
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
            // Deletes the callback and thereby, after this run, the task.
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

/// Has the context run `future`, from its next pass on.
pub(super) fn spawn(ctx: &AioContext, future: impl Future<Output = ()> + 'static) {
    let task = Rc::new(OnceCell::<Task>::new());
    let bh = ctx.bottom_half({
        let task = Rc::clone(&task);
        move |_| task.get().expect("set before it is first scheduled").run()
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
    fn finished_tasks_give_their_bottom_halves_back() {
        let ctx = AioContext::new().unwrap();
        for _ in 0..200 {
            ctx.spawn_local(async {});
            ctx.poll(true);
        }
        assert_eq!(
            ctx.inner.bottom_halves.capacity(),
            64,
            "one word is enough for one at a time"
        );
    }
}
