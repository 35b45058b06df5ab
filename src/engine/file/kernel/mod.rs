//! Requests that the kernel executes asynchronously: the common part of io_uring and Linux AIO.
//!
//! The kernel gets only valid reads and writes. Everything else goes to the thread pool: flushes, discards, durable
//! writes, requests that need a bounce buffer, and invalid requests. So do requests that the kernel did only in part: a
//! worker simply repeats them. This keeps the kernel's part free of special cases.
//!
//! One queue serves all files of an IOThread. Each file has a share of it ([`backlog`]).

use std::cell::{Cell, OnceCell, RefCell, RefMut};
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::rc::{Rc, Weak};
use std::time::Duration;

use self::backlog::{Backlog, Part, Room};
use super::flights::Flights;
use super::kernel_queue::{Completion, KernelQueue};
use super::threads::ThreadsEngine;
use crate::aio::{AioContext, EventSet, FdHandler, Poller, PollerHandle, Timer};
use crate::defer::DeferScope;
use crate::engine::error::Error;
use crate::engine::max_batch::MaxBatch;
use crate::io::{IoOp, IoRequest, Requests};
use crate::log_limit::LogLimit;
use crate::storage::RawFile;

mod backlog;

/// Pause before a failed submission is retried.
const RETRY_TIME: Duration = Duration::from_millis(1);

/// A kernel queue of an IOThread. That thread only.
///
/// It is dropped with the IOThread, when no request is in flight. (Otherwise the drop waits for the requests, because
/// the kernel writes into their memory.)
pub(in crate::engine) struct KernelEngine<Q: KernelQueue> {
    // Dropped before `inner`, so that nothing polls it while it is being dropped.
    _events: FdHandler,
    _poller: Rc<PollerHandle>,
    inner: Rc<Inner<Q>>,
}

struct Inner<Q: KernelQueue> {
    queue: RefCell<Q>,
    backlog: RefCell<Backlog<Registered<Q>>>,
    /// Number of files.
    files: Cell<usize>,
    flights: RefCell<Flights<Pending<Q>>>,
    /// An empty list, kept for its capacity.
    done: RefCell<Vec<Completion>>,
    ended: RefCell<Vec<(Pending<Q>, i64)>>,
    retry: Timer,
    /// The last submission failed.
    failing: Cell<bool>,
    log: LogLimit,
    /// Weak, because the registration owns a reference to this struct.
    poller: OnceCell<Weak<PollerHandle>>,
}

/// A request and its file.
struct Pending<Q: KernelQueue> {
    request: Box<IoRequest>,
    file: Rc<Registered<Q>>,
}

/// A file of the queue. It is removed with its last request.
struct Registered<Q: KernelQueue> {
    number: u32,
    part: Part,
    /// Executes requests that the queue does not support.
    threads: Rc<ThreadsEngine<RawFile>>,
    inner: Weak<Inner<Q>>,
    max_batch: MaxBatch,
}

impl<Q: KernelQueue> Drop for Registered<Q> {
    fn drop(&mut self) {
        // A queue that was dropped has no files.
        if let Some(inner) = self.inner.upgrade() {
            inner.queue.borrow_mut().remove_file(self.number);
            inner.files.set(inner.files.get() - 1);
        }
    }
}

impl<Q: KernelQueue> AsRef<Part> for Registered<Q> {
    fn as_ref(&self) -> &Part {
        &self.part
    }
}

impl<Q: KernelQueue> KernelEngine<Q> {
    /// Creates an engine for `queue`.
    ///
    /// # Errors
    /// The eventfd of the queue cannot be watched.
    pub(in crate::engine) fn new(ctx: &AioContext, queue: Q) -> Result<Self, Error> {
        let event_fd = queue.event_fd();
        let inner = Rc::new_cyclic(|weak: &Weak<Inner<Q>>| {
            let retried = weak.clone();
            Inner {
                queue: RefCell::new(queue),
                backlog: RefCell::default(),
                files: Cell::new(0),
                flights: RefCell::default(),
                done: RefCell::default(),
                ended: RefCell::default(),
                retry: ctx.timer(move || {
                    if let Some(inner) = retried.upgrade() {
                        inner.pump();
                    }
                }),
                failing: Cell::new(false),
                log: LogLimit::new(),
                poller: OnceCell::new(),
            }
        });
        let reaper = Rc::downgrade(&inner);
        // Every signal triggers an edge, so the counter need not be read.
        let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let events = ctx.add_fd(event_fd, events, move |_| {
            if let Some(inner) = reaper.upgrade() {
                inner.signalled();
            }
        })?;
        let poller = Rc::new(ctx.add_poller(Rc::clone(&inner) as Rc<dyn Poller>));
        inner.poller.get_or_init(|| Rc::downgrade(&poller));
        Ok(Self {
            _events: events,
            _poller: poller,
            inner,
        })
    }

    /// Returns the queue.
    pub(super) fn queue(&self) -> RefMut<'_, Q> {
        self.inner.queue.borrow_mut()
    }
}

/// A file on a kernel queue. IOThread only.
pub(super) struct KernelFile<Q: KernelQueue> {
    file: Rc<Registered<Q>>,
    /// All requests go to the thread pool: in the kernel, a disk that does not answer would hold up the others.
    avoided: bool,
    engine: Rc<KernelEngine<Q>>,
}

impl<Q: KernelQueue> KernelFile<Q> {
    /// Adds the file of `threads`, which executes requests that the queue does not support. A submission has at most
    /// `max_batch` requests, and at least one.
    ///
    /// # Errors
    /// The queue has no room for another file.
    pub(super) fn new(
        engine: Rc<KernelEngine<Q>>,
        threads: Rc<ThreadsEngine<RawFile>>,
        max_batch: MaxBatch,
    ) -> io::Result<Self> {
        let number = engine.inner.queue.borrow_mut().add_file(threads.disk().as_fd())?;
        let avoided = Q::COMMON_THREADS && !threads.disk().supports_nowait();
        engine.inner.files.set(engine.inner.files.get() + 1);
        let file = Rc::new(Registered {
            number,
            part: Part::default(),
            threads,
            inner: Rc::downgrade(&engine.inner),
            max_batch,
        });
        Ok(Self {
            file,
            avoided,
            engine,
        })
    }

    /// Starts the batch and empties the list, with one system call if the batch fits into the queue and its maximum.
    pub(super) fn submit(&self, batch: &mut Requests) {
        let (inner, threads) = (&*self.engine.inner, &self.file.threads);
        if self.avoided {
            return threads.submit(batch);
        }
        let suited = |request: &IoRequest| suits(threads.disk(), request);
        inner.backlog.borrow_mut().take_from(&self.file, batch, suited);
        if !batch.is_empty() {
            threads.submit(batch);
        }
        inner.pump();
    }
}

/// Returns whether the kernel can execute the request as it is.
fn suits(file: &RawFile, request: &IoRequest) -> bool {
    let write = match request.op {
        IoOp::Read => false,
        IoOp::Write { durable: false } => true,
        _ => return false,
    };
    file.takes_as_is(request.whole(), request.offset, write)
}

impl<Q: KernelQueue> Inner<Q> {
    /// Submits as much of the backlog as the kernel has room for.
    fn pump(&self) {
        let (mut queue, mut backlog) = (self.queue.borrow_mut(), self.backlog.borrow_mut());
        let mut flights = self.flights.borrow_mut();
        let mut prepared = usize::from(self.failing.get());
        let capacity = queue.capacity();
        let room = |in_flight| Room {
            capacity,
            left: capacity - in_flight,
            files: self.files.get(),
        };
        while let Some((file, mut request)) = backlog.next(room(flights.count)) {
            request.begins();
            file.part.begin();
            let number = flights.begin(Pending { request, file });
            let Pending { request, file } = flights.get(number);
            let max_batch = file.max_batch.get();
            // SAFETY: the box stays in `flights`, unchanged, until the completion is reaped. Its memory stays mapped
            // while the request is in flight (see `IoVecs`).
            if !unsafe { queue.prepare(request, file.number, number as u64) } {
                let Pending { request, file } = flights.end(number);
                file.part.end();
                backlog.put_back(file, request);
                if !self.submit(&mut queue) {
                    return;
                }
                prepared = 0;
                continue;
            }
            prepared += 1;
            if prepared >= max_batch {
                if !self.submit(&mut queue) {
                    return;
                }
                prepared = 0;
            }
        }
        if prepared > 0 {
            self.submit(&mut queue);
        }
    }

    /// Submits the prepared requests. If that fails, this logs it once, schedules a retry and returns false.
    fn submit(&self, queue: &mut Q) -> bool {
        let result = queue.submit();
        if let Err(error) = &result {
            if !self.failing.get()
                && let Some(suppressed) = self.log.pass("not submitted", error)
            {
                tracing::warn!(%error, suppressed, "cannot submit requests to the kernel: retrying");
            }
            self.retry.arm_in(RETRY_TIME);
        }
        self.failing.set(result.is_err());
        result.is_ok()
    }

    /// Handles a signal of the eventfd: completions are available.
    fn signalled(&self) {
        if let Some(poller) = self.poller.get().and_then(Weak::upgrade) {
            poller.wake();
        }
        self.reap();
    }

    /// Completes the requests that the kernel has finished. Returns whether there were any.
    fn reap(&self) -> bool {
        let mut done = self.done.take();
        self.queue.borrow_mut().reap(&mut done);
        let progress = !done.is_empty();
        if progress {
            let _scope = DeferScope::enter();
            let mut ended = self.ended.take();
            let mut flights = self.flights.borrow_mut();
            ended.extend(done.drain(..).map(|completion| {
                let number = usize::try_from(completion.data).expect("the number was a usize before");
                let mut pending = flights.end(number);
                pending.request.ends();
                pending.file.part.end();
                (pending, completion.result)
            }));
            drop(flights);
            if !self.backlog.borrow().is_empty() {
                self.pump();
            }
            ended
                .drain(..)
                .for_each(|(pending, result)| complete(pending, result));
            self.ended.replace(ended);
        }
        self.done.replace(done);
        progress
    }
}

/// Completes a request, or passes it to the thread pool if the kernel has not executed it.
fn complete<Q: KernelQueue>(pending: Pending<Q>, result: i64) {
    let Pending { mut request, file } = pending;
    let threads = &file.threads;
    match Verdict::of(result, request.whole().len()) {
        // A merged request failed: retry its members one by one to find out which.
        Verdict::Finished(Err(_)) if request.is_merged() => threads.submit_one(request),
        Verdict::Finished(Err(error)) => {
            request.result = Err(error);
            request.finish();
        }
        Verdict::Finished(Ok(())) => {
            request.set_results(|_| Ok(()));
            request.finish();
        }
        Verdict::Again => threads.submit_one(request),
    }
}

/// The meaning of a completion.
#[derive(Debug)]
enum Verdict {
    Finished(io::Result<()>),
    /// The request was not done completely, and is to be repeated with blocking calls.
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
    fn poll(&self) -> bool {
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
        let forgotten = self.flights.borrow().count + self.backlog.borrow().len();
        if forgotten > 0 {
            tracing::error!(
                forgotten,
                "an engine was dropped with requests in flight: waiting for them"
            );
        }
        loop {
            self.pump();
            self.reap();
            if self.flights.borrow().count == 0 {
                return;
            }
            if let Err(error) = self.queue.borrow_mut().wait()
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "cannot wait for requests in flight: retrying");
                std::thread::sleep(RETRY_TIME);
            }
        }
    }
}

impl<Q: KernelQueue> fmt::Debug for KernelEngine<Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KernelEngine")
            .field("in_flight", &self.inner.flights.borrow().count)
            .finish_non_exhaustive()
    }
}

impl<Q: KernelQueue> fmt::Debug for KernelFile<Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KernelFile")
            .field("engine", &self.engine)
            .field("file", &self.file.number)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
