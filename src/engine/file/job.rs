//! Requests on their way through the thread pool: each in a recycled box, which knows the file.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use send_wrapper::SendWrapper;

use super::execute::execute;
use crate::aio::AioContext;
use crate::io::IoRequest;
use crate::storage::Storage;
use crate::thread_pool::{Outcome, Work};

/// Boxes for the requests of one file on one IOThread. IOThread only.
#[derive(Debug)]
pub(super) struct Jobs {
    storage: Arc<Storage>,
    /// As many as ever were in the pool at the same time.
    #[allow(clippy::vec_box, reason = "each box is handed on as it is")]
    idle: RefCell<Vec<Box<Job>>>,
}

/// A request in the pool, or an idle box.
#[derive(Debug)]
struct Job {
    storage: Arc<Storage>,
    request: Option<Box<IoRequest>>,
    /// Where the box goes afterwards. Set while there is a request.
    home: Option<SendWrapper<Rc<Jobs>>>,
}

impl Jobs {
    pub(super) fn new(storage: Arc<Storage>) -> Rc<Self> {
        Rc::new(Self {
            storage,
            idle: RefCell::default(),
        })
    }

    pub(super) fn storage(&self) -> &Arc<Storage> {
        &self.storage
    }

    /// Makes a job of a request.
    pub(super) fn job(self: &Rc<Self>, request: Box<IoRequest>) -> Box<dyn Work> {
        let idle = self.idle.borrow_mut().pop();
        let mut job = idle.unwrap_or_else(|| {
            Box::new(Job {
                storage: Arc::clone(&self.storage),
                request: None,
                home: None,
            })
        });
        job.request = Some(request);
        job.home = Some(SendWrapper::new(Rc::clone(self)));
        job
    }
}

impl Work for Job {
    fn run(&mut self) {
        if let Some(request) = &mut self.request {
            execute(&self.storage, request);
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
    use crate::engine::file::merge::Merger;
    use crate::engine::file::merge::tests::{Back, sequence};
    use crate::io::Completer;

    #[test]
    fn a_panic_of_a_worker_fails_every_member_of_a_group() {
        let (mut memory, ctx) = ([0; 512], AioContext::new().unwrap());
        let jobs = Jobs::new(Arc::new(Storage::null(1 << 20)));
        for (outcome, errno) in [
            (Outcome::Panicked, libc::EIO),
            (Outcome::Cancelled, libc::ECANCELED),
        ] {
            let mut batch = sequence(3, &mut memory);
            Merger::up_to(4096).merge(&mut batch);
            let (back, mut leader) = (Rc::<Back>::default(), batch.remove(0));
            leader.set_completer(Rc::clone(&back) as Rc<dyn Completer>);
            jobs.job(leader).complete(&ctx, outcome);
            let errors = back
                .take()
                .into_iter()
                .map(|request| request.result.unwrap_err().raw_os_error());
            assert_eq!(errors.collect::<Vec<_>>(), [Some(errno); 3]);
        }
    }
}
