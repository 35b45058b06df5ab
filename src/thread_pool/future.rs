//! Futures of a job's result.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use super::{Outcome, Work};
use crate::aio::AioContext;

struct Slot<T> {
    result: Option<T>,
    outcome: Option<Outcome>,
    waker: Option<Waker>,
}

/// The slot of a job's result. The lock is hardly contended: the worker takes it once.
struct Shared<T>(Mutex<Slot<T>>);

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, Slot<T>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

struct Job<F, T> {
    job: Option<F>,
    shared: Arc<Shared<T>>,
}

impl<T: Send + 'static, F: FnOnce() -> T + Send + 'static> Work for Job<F, T> {
    fn run(&mut self) {
        if let Some(job) = self.job.take() {
            let result = job();
            self.shared.lock().result = Some(result);
        }
    }

    fn complete(self: Box<Self>, _ctx: &AioContext, outcome: Outcome) {
        let waker = {
            let mut slot = self.shared.lock();
            slot.outcome = Some(outcome);
            slot.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

struct Pending<T>(Arc<Shared<T>>);

impl<T> Future for Pending<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let mut slot = self.0.lock();
        match slot.outcome {
            Some(Outcome::Done) => Poll::Ready(
                slot.result
                    .take()
                    .expect("the future is not polled again after it is ready"),
            ),
            Some(outcome) => {
                drop(slot);
                panic!("the job did not finish: {outcome:?}");
            }
            None => {
                slot.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// Returns a [`Work`] that runs `job`, and the future of its result.
pub(super) fn job<T, F>(job: F) -> (Box<dyn Work>, impl Future<Output = T> + use<T, F>)
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let shared = Arc::new(Shared(Mutex::new(Slot {
        result: None,
        outcome: None,
        waker: None,
    })));
    (
        Box::new(Job {
            job: Some(job),
            shared: Arc::clone(&shared),
        }),
        Pending(shared),
    )
}
