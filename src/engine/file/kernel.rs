//! Requests that the kernel executes by itself: what io_uring and Linux AIO have in common.
//!
//! The kernel gets whole, well-formed reads and writes. Everything else goes to the thread pool: flushes, discards,
//! durable writes, what needs a bounce buffer or is to be refused, and also what the kernel did only in part, which
//! is simply done again. So the kernel's side knows no loops and no exceptions.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::Duration;

use super::threads::ThreadsEngine;
use crate::aio::{AioContext, EventSet, FdHandler, Poller, PollerHandle, Timer};
use crate::defer::DeferScope;
use crate::engine::error::Error;
use crate::io::{IoOp, IoRequest, Requests};
use crate::log_limit::LogLimit;
use crate::storage::RawFile;

/// A kernel that is short of memory is asked again after this time.
const RETRY_TIME: Duration = Duration::from_millis(1);

/// A submission and completion queue shared with the kernel. One thread only.
pub(super) trait KernelQueue: 'static {
    /// Most requests that the kernel may have at once, at least 1.
    fn capacity(&self) -> usize;

    /// The eventfd that every completion is signalled on, unless [`set_signalled`](Self::set_signalled) says otherwise.
    fn event_fd(&self) -> RawFd;

    /// Puts one request into the submission queue; `data` comes back with its completion. Returns false if the queue is
    /// full until the next [`submit`](Self::submit).
    ///
    /// # Safety
    /// The request stays where it is, unchanged, and its memory mapped, until its completion is reaped.
    unsafe fn prepare(&mut self, request: &IoRequest, data: u64) -> bool;

    /// Hands everything prepared to the kernel.
    ///
    /// # Errors
    /// The kernel is short of something; what it did not take stays prepared.
    fn submit(&mut self) -> io::Result<()>;

    /// Moves the completions that there are to the end of `done`. Makes no system call unless the kernel asks for it.
    fn reap(&mut self, done: &mut Vec<Completion>);

    /// Blocks until there is something to reap.
    ///
    /// # Errors
    /// Those of the system call; it is not repeated.
    fn wait(&mut self) -> io::Result<()>;

    /// Whether completions need to be signalled. A hint.
    fn set_signalled(&mut self, on: bool);
}

/// What the kernel says at the end of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Completion {
    /// As given to [`KernelQueue::prepare`].
    pub(super) data: u64,
    /// Bytes moved, or a negative errno.
    pub(super) result: i64,
}

/// An engine on a kernel queue. IOThread only.
///
/// It may be dropped only when no request is in flight. (If one is nevertheless, the drop waits for it: the kernel
/// writes into its memory.)
pub(super) struct KernelEngine<Q: KernelQueue> {
    // Before `inner`: nobody polls what is being dropped.
    _events: FdHandler,
    _poller: PollerHandle,
    inner: Rc<Inner<Q>>,
}

struct Inner<Q: KernelQueue> {
    queue: RefCell<Q>,
    threads: ThreadsEngine,
    /// Requests that the kernel has no room for.
    backlog: RefCell<VecDeque<Box<IoRequest>>>,
    /// Requests prepared and not reaped.
    in_flight: Cell<usize>,
    /// Recycled between visits.
    done: RefCell<Vec<Completion>>,
    retry: Timer,
    /// The last submission failed.
    failing: Cell<bool>,
    /// For messages: the image's path.
    disk: String,
    log: LogLimit,
}

impl<Q: KernelQueue> KernelEngine<Q> {
    /// An engine on `queue` for `disk`; `threads` does what the queue cannot.
    ///
    /// # Errors
    /// The eventfd of the queue cannot be watched.
    pub(super) fn new(
        ctx: &AioContext,
        disk: String,
        queue: Q,
        threads: ThreadsEngine,
    ) -> Result<Self, Error> {
        let event_fd = queue.event_fd();
        let inner = Rc::new_cyclic(|weak: &std::rc::Weak<Inner<Q>>| {
            let retried = weak.clone();
            Inner {
                queue: RefCell::new(queue),
                threads,
                backlog: RefCell::default(),
                in_flight: Cell::new(0),
                done: RefCell::default(),
                retry: ctx.timer(move |_| {
                    if let Some(inner) = retried.upgrade() {
                        inner.pump();
                    }
                }),
                failing: Cell::new(false),
                disk,
                log: LogLimit::new(),
            }
        });
        let reaper = Rc::downgrade(&inner);
        // Every signal is an edge, so that the counter need not be read.
        let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let events = ctx.add_fd(event_fd, events, move |_, _| {
            if let Some(inner) = reaper.upgrade() {
                inner.reap();
            }
        })?;
        Ok(Self {
            _events: events,
            _poller: ctx.add_poller(Rc::clone(&inner) as Rc<dyn Poller>),
            inner,
        })
    }

    /// Starts the batch, which is left empty, with one system call if it fits.
    pub(super) fn submit(&self, batch: &mut Requests) {
        let inner = &*self.inner;
        let mut backlog = inner.backlog.borrow_mut();
        for request in batch.extract_if(.., |request| suits(inner.threads.file(), request)) {
            backlog.push_back(request);
        }
        drop(backlog);
        if !batch.is_empty() {
            inner.threads.submit(batch);
        }
        inner.pump();
    }
}

/// Whether the kernel can do the request without our help.
fn suits(file: &RawFile, request: &IoRequest) -> bool {
    let write = match request.op {
        IoOp::Read => false,
        IoOp::Write { durable: false } => true,
        _ => return false,
    };
    file.takes_as_is(request.whole(), request.offset, write)
}

impl<Q: KernelQueue> Inner<Q> {
    /// Hands the kernel as much of the backlog as it takes.
    fn pump(&self) {
        let (mut queue, mut backlog) = (self.queue.borrow_mut(), self.backlog.borrow_mut());
        let mut prepared = self.failing.get();
        while self.in_flight.get() < queue.capacity()
            && let Some(request) = backlog.pop_front()
        {
            let request = Box::into_raw(request);
            let data = request.expose_provenance() as u64;
            // SAFETY: the box was given up just now; only `retrieve` makes one of it again, after the completion. Its
            // memory stays mapped while the request is out (see `IoVecs`).
            if !unsafe { queue.prepare(&*request, data) } {
                // SAFETY: it was not prepared, so the box is still ours alone.
                backlog.push_front(unsafe { Box::from_raw(request) });
                if !self.submit(&mut queue) {
                    return;
                }
                prepared = false;
                continue;
            }
            self.in_flight.set(self.in_flight.get() + 1);
            prepared = true;
        }
        if prepared {
            self.submit(&mut queue);
        }
    }

    /// Submits what is prepared; on failure, which is logged once, arranges for another attempt and returns false.
    fn submit(&self, queue: &mut Q) -> bool {
        let result = queue.submit();
        if let Err(error) = &result {
            if !self.failing.get()
                && let Some(suppressed) = self.log.pass("not taken", error)
            {
                tracing::warn!(disk = self.disk, %error, suppressed, "the kernel does not take requests: retrying");
            }
            self.retry.arm_in(RETRY_TIME);
        }
        self.failing.set(result.is_err());
        result.is_ok()
    }

    /// Completes what the kernel has finished; returns whether there was anything.
    fn reap(&self) -> bool {
        let mut done = self.done.take();
        self.queue.borrow_mut().reap(&mut done);
        let progress = !done.is_empty();
        if progress {
            let _scope = DeferScope::enter();
            self.in_flight.set(self.in_flight.get() - done.len());
            if !self.backlog.borrow().is_empty() {
                self.pump();
            }
            for completion in done.drain(..) {
                self.complete(completion);
            }
        }
        self.done.replace(done);
        progress
    }

    fn complete(&self, completion: Completion) {
        let mut request = retrieve(completion);
        match Verdict::of(completion.result, request.whole().len()) {
            // Whose error it is, is not known.
            Verdict::Finished(Err(_)) if request.is_merged() => self.threads.submit_one(request),
            Verdict::Finished(Err(error)) => {
                request.result = Err(error);
                request.finish();
            }
            Verdict::Finished(Ok(())) => {
                request.set_results(|_| Ok(()));
                request.finish();
            }
            Verdict::Again => self.threads.submit_one(request),
        }
    }
}

fn retrieve(completion: Completion) -> Box<IoRequest> {
    #[allow(clippy::cast_possible_truncation, reason = "it was an address before")]
    let request = std::ptr::with_exposed_provenance_mut(completion.data as usize);
    // SAFETY: `pump` gave up this box and the kernel returns it, once, now that it does not touch it any more.
    unsafe { Box::from_raw(request) }
}

/// What a completion means.
#[derive(Debug)]
enum Verdict {
    Finished(io::Result<()>),
    /// Not all of it was done, for reasons that do not matter: to be done with blocking calls.
    Again,
}

impl Verdict {
    fn of(result: i64, len: usize) -> Self {
        if let Ok(moved) = usize::try_from(result) {
            return if moved == len {
                Self::Finished(Ok(()))
            } else {
                Self::Again
            };
        }
        match i32::try_from(-result).unwrap_or(libc::EIO) {
            libc::EINTR | libc::EAGAIN => Self::Again,
            errno => Self::Finished(Err(io::Error::from_raw_os_error(errno))),
        }
    }
}

impl<Q: KernelQueue> Poller for Inner<Q> {
    fn poll(&self, _ctx: &AioContext) -> bool {
        self.reap()
    }

    fn poll_begin(&self) {
        self.queue.borrow_mut().set_signalled(false);
    }

    fn poll_end(&self) -> bool {
        self.queue.borrow_mut().set_signalled(true);
        self.reap()
    }
}

impl<Q: KernelQueue> Drop for Inner<Q> {
    fn drop(&mut self) {
        let forgotten = self.in_flight.get() + self.backlog.borrow().len();
        if forgotten > 0 {
            tracing::error!(
                disk = self.disk,
                forgotten,
                "an engine was freed with requests in flight"
            );
        }
        loop {
            self.pump();
            self.reap();
            if self.in_flight.get() == 0 {
                return;
            }
            if let Err(error) = self.queue.borrow_mut().wait()
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(disk = self.disk, %error, "waiting for requests in flight");
                std::thread::sleep(RETRY_TIME);
            }
        }
    }
}

impl<Q: KernelQueue> std::fmt::Debug for KernelEngine<Q> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KernelEngine")
            .field("in_flight", &self.inner.in_flight.get())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
