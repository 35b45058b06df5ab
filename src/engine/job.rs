//! Requests in the thread pool. Each travels in a recycled box, together with its executor.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use send_wrapper::SendWrapper;

use crate::aio::AioContext;
use crate::io::IoRequest;
use crate::storage::Nowait;
use crate::thread_pool::{Outcome, Work};

/// An executor of requests with blocking calls. Any thread.
pub(super) trait Execute: Send + Sync + 'static {
    /// Executes the request and its followers, and sets their results.
    fn execute(&self, request: &mut IoRequest);
}

/// An executor that can also try requests without waiting. Any thread.
pub(super) trait TryExecute: Execute {
    /// The part of the executor that is held while several requests are tried.
    type Session<'a>
    where
        Self: 'a;

    /// Returns whether it is worth trying.
    fn nowait(&self) -> Nowait;

    /// Returns whether writes exclude each other, so that one worker is enough for them.
    fn writes_take_turns(&self) -> bool;

    /// Begins to try requests, unless that would have to wait. Nobody waits for anything but an attempt while the session
    /// exists. `lone`: it is a single request, and its driver has another CPU.
    fn session(&self, lone: bool) -> Option<Self::Session<'_>>;

    /// Executes the request if it need not wait. Returns whether it was executed. Then the results are set.
    fn try_execute(session: &Self::Session<'_>, request: &mut IoRequest) -> bool;
}

/// The boxes for requests of one disk on one IOThread. IOThread only.
#[derive(Debug)]
pub(super) struct Jobs<E> {
    executor: Arc<E>,
    /// Boxes without a request. Their number is bounded by the requests that were ever in the pool at the same time.
    #[allow(clippy::vec_box, reason = "each box moves on without a copy")]
    idle: RefCell<Vec<Box<Job<E>>>>,
}

/// A request in the pool, or an idle box.
#[derive(Debug)]
struct Job<E> {
    executor: Arc<E>,
    request: Option<Box<IoRequest>>,
    /// The list to which the box returns. Set while there is a request.
    home: Option<SendWrapper<Rc<Jobs<E>>>>,
}

impl<E: Execute> Jobs<E> {
    pub(super) fn new(executor: Arc<E>) -> Rc<Self> {
        Rc::new(Self {
            executor,
            idle: RefCell::default(),
        })
    }

    pub(super) fn executor(&self) -> &Arc<E> {
        &self.executor
    }

    /// Wraps a request in a job for the pool.
    pub(super) fn job(self: &Rc<Self>, request: Box<IoRequest>) -> Box<dyn Work> {
        let idle = self.idle.borrow_mut().pop();
        let mut job = idle.unwrap_or_else(|| {
            Box::new(Job {
                executor: Arc::clone(&self.executor),
                request: None,
                home: None,
            })
        });
        job.request = Some(request);
        job.home = Some(SendWrapper::new(Rc::clone(self)));
        job
    }
}

impl<E: Execute> Work for Job<E> {
    fn run(&mut self) {
        if let Some(request) = &mut self.request {
            request.begins();
            self.executor.execute(request);
            request.ends();
        }
    }

    fn complete(mut self: Box<Self>, _ctx: &AioContext, outcome: Outcome) {
        let (request, home) = (self.request.take(), self.home.take());
        if let Some(home) = home {
            home.idle.borrow_mut().push(self);
        }
        let Some(mut request) = request else { return };
        match outcome {
            Outcome::Done => {}
            Outcome::Cancelled => request.set_results(|_| Err(io::Error::from_raw_os_error(libc::ECANCELED))),
            Outcome::Panicked => request.set_results(|_| Err(io::Error::from_raw_os_error(libc::EIO))),
        }
        request.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{Completer, Requests};

    #[derive(Default)]
    struct Back(RefCell<Requests>);

    impl Completer for Back {
        fn complete(&self, request: Box<IoRequest>) {
            self.0.borrow_mut().push(request);
        }
    }

    struct Nothing;

    impl Execute for Nothing {
        fn execute(&self, _request: &mut IoRequest) {}
    }

    #[test]
    fn a_workers_panic_fails_all_merged_requests() {
        let (back, ctx) = (Rc::<Back>::default(), AioContext::new().unwrap());
        let jobs = Jobs::new(Arc::new(Nothing));
        for (outcome, errno) in [
            (Outcome::Panicked, libc::EIO),
            (Outcome::Cancelled, libc::ECANCELED),
        ] {
            let mut leader = IoRequest::new();
            leader.absorb(IoRequest::new());
            leader.absorb(IoRequest::new());
            leader.set_completer(Rc::clone(&back) as Rc<dyn Completer>);
            jobs.job(leader).complete(&ctx, outcome);
            let back = back.0.take().into_iter();
            let errors = back.map(|request| request.result.unwrap_err().raw_os_error());
            assert_eq!(errors.collect::<Vec<_>>(), [Some(errno); 3]);
        }
        assert_eq!(jobs.idle.borrow().len(), 1, "the box is used again");
    }
}
