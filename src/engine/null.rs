//! Disks that store nothing (QEMU's null-co and null-aio), for measuring and testing everything above the storage.
//!
//! Writes are discarded. Reads leave the memory unchanged, or return zeroes (`read-zeroes`). `NullCo` completes requests during the call. `NullAio`
//! completes them later, from a timer of the IOThread, like storage on a network.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::job::{Execute, Jobs};
use crate::aio::{AioContext, Timer};
use crate::defer::DeferScope;
use crate::io::{Completer, IoOp, IoRequest, Requests};
use crate::storage::Limits;
use crate::thread_pool::{ThreadPool, Work};

/// A disk that stores nothing. Any thread.
#[derive(Debug)]
pub struct NullDisk {
    size: AtomicU64,
    /// The size after the next [`IoOp::RefreshSize`].
    next_size: AtomicU64,
    limits: Limits,
    /// Reads return zeroes. Otherwise they leave the memory as it is.
    zeroes: bool,
}

impl NullDisk {
    /// Creates a disk of `size` bytes, a positive multiple of 512. With `zeroes`, reads return zeroes.
    pub(super) fn new(size: u64, zeroes: bool) -> Self {
        let limits = Limits {
            logical_block_size: 512,
            physical_block_size: 512,
            optimal_io_size: 0,
            request_alignment: 1,
            memory_alignment: 1,
            discard_granularity: 512,
            write_zeroes: true,
            read_only: false,
        };
        Self {
            size: AtomicU64::new(size),
            next_size: AtomicU64::new(size),
            limits,
            zeroes,
        }
    }

    pub(super) fn size(&self) -> u64 {
        // Relaxed: no other data depends on this number.
        self.size.load(Ordering::Relaxed)
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Changes the size, like truncating a file. The next [`IoOp::RefreshSize`] makes the new size known.
    pub fn set_len(&self, size: u64) {
        self.next_size.store(size, Ordering::Relaxed);
    }

    fn execute_one(&self, request: &IoRequest) -> io::Result<()> {
        let fits = |offset: u64, len: u64| offset.checked_add(len).is_some_and(|end| end <= self.size());
        let allowed = match request.op {
            IoOp::RefreshSize | IoOp::LookAnew => {
                self.size
                    .store(self.next_size.load(Ordering::Relaxed), Ordering::Relaxed);
                true
            }
            IoOp::Flush | IoOp::FlushAtRest | IoOp::Leave | IoOp::Settle | IoOp::Inherit | IoOp::Salvage => {
                true
            }
            IoOp::Read | IoOp::Write { .. } | IoOp::ZeroedWrite { .. } => {
                fits(request.offset, request.alone().len() as u64)
            }
            IoOp::Discard | IoOp::WriteZeroes { .. } => {
                request.ranges.iter().all(|range| fits(range.offset, range.len))
            }
        };
        if self.zeroes && allowed && request.op == IoOp::Read {
            request.alone().write_zeroes();
        }
        match allowed {
            true => Ok(()),
            false => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the range ends past the end of the disk",
            )),
        }
    }
}

impl Execute for NullDisk {
    fn execute(&self, request: &mut IoRequest) {
        request.set_results(|member| self.execute_one(member));
        if request.op == IoOp::Salvage {
            request.op = IoOp::Read;
        }
    }
}

/// A channel that completes requests during the call, or in the thread pool (`--aio threads`). IOThread only.
#[derive(Debug)]
pub(super) struct NullCoChannel {
    disk: Arc<NullDisk>,
    threads: Option<Threads>,
}

/// Completes requests in the thread pool.
struct Threads {
    pool: ThreadPool,
    jobs: Rc<Jobs<NullDisk>>,
    /// An empty list, kept for its capacity.
    works: RefCell<Vec<Box<dyn Work>>>,
}

impl Threads {
    fn new(pool: ThreadPool, jobs: Rc<Jobs<NullDisk>>) -> Self {
        Self {
            pool,
            jobs,
            works: RefCell::default(),
        }
    }

    fn submit(&self, batch: &mut Requests, completer: &Rc<dyn Completer>) {
        let mut works = self.works.take();
        for mut request in batch.drain(..) {
            request.set_completer(Rc::clone(completer));
            works.push(self.jobs.job(request));
        }
        self.pool.submit_batch(&mut works);
        self.works.replace(works);
    }
}

impl NullCoChannel {
    pub(super) fn new(disk: &Arc<NullDisk>, pool: Option<ThreadPool>) -> Self {
        Self {
            disk: Arc::clone(disk),
            threads: pool.map(|pool| Threads::new(pool, Jobs::new(Arc::clone(disk)))),
        }
    }

    pub(super) fn sibling(&self) -> Self {
        let threads = self.threads.as_ref();
        Self {
            disk: Arc::clone(&self.disk),
            threads: threads.map(|threads| Threads::new(threads.pool.clone(), Rc::clone(&threads.jobs))),
        }
    }

    pub(super) fn submit(&self, batch: &mut Requests, completer: &Rc<dyn Completer>) {
        match &self.threads {
            Some(threads) => threads.submit(batch, completer),
            None => self.answer(batch, completer),
        }
    }

    fn answer(&self, batch: &mut Requests, completer: &Rc<dyn Completer>) {
        for request in batch.iter_mut() {
            match request.op {
                IoOp::Read if self.disk.zeroes => self.disk.execute(request),
                // The device has checked the range.
                IoOp::Read | IoOp::Write { .. } | IoOp::Flush => request.result = Ok(()),
                _ => self.disk.execute(request),
            }
        }
        for failed in batch.extract_if(.., |request| request.result.is_err()) {
            completer.complete(failed);
        }
        completer.complete_batch(batch, false);
    }
}

/// A channel that completes requests from a timer. IOThread only.
pub(super) struct NullAioChannel {
    disk: Arc<NullDisk>,
    latency: Duration,
    shared: Rc<Later>,
}

/// The waiting requests. They are in order, because all of them wait equally long.
struct Later {
    disk: Arc<NullDisk>,
    waiting: RefCell<VecDeque<(Instant, Box<IoRequest>)>>,
    timer: Timer,
}

impl NullAioChannel {
    pub(super) fn new(ctx: &AioContext, disk: &Arc<NullDisk>, latency: Duration) -> Self {
        let shared = Rc::new_cyclic(|me: &Weak<Later>| {
            let me = Weak::clone(me);
            Later {
                disk: Arc::clone(disk),
                waiting: RefCell::default(),
                timer: ctx.timer(move || {
                    if let Some(later) = me.upgrade() {
                        later.complete();
                    }
                }),
            }
        });
        Self {
            disk: Arc::clone(disk),
            latency,
            shared,
        }
    }

    pub(super) fn sibling(&self) -> Self {
        Self {
            disk: Arc::clone(&self.disk),
            latency: self.latency,
            shared: Rc::clone(&self.shared),
        }
    }

    pub(super) fn submit(&self, batch: &mut Requests, completer: &Rc<dyn Completer>) {
        // Only requests take time. Whoever looks at the size waits for the answer.
        let is_short = |request: &IoRequest| matches!(request.op, IoOp::RefreshSize | IoOp::LookAnew);
        for mut request in batch.extract_if(.., |request| is_short(request)) {
            self.disk.execute(&mut request);
            completer.complete(request);
        }
        let due = Instant::now() + self.latency;
        let mut waiting = self.shared.waiting.borrow_mut();
        for mut request in batch.drain(..) {
            request.set_completer(Rc::clone(completer));
            waiting.push_back((due, request));
        }
        if !self.shared.timer.is_armed() && !waiting.is_empty() {
            self.shared.timer.arm(due);
        }
    }
}

impl Later {
    fn complete(&self) {
        let _scope = DeferScope::enter();
        let now = Instant::now();
        while let Some((_, mut request)) = self.take_due(now) {
            self.disk.execute(&mut request);
            request.finish();
        }
        if let Some((due, _)) = self.waiting.borrow().front() {
            self.timer.arm(*due);
        }
    }

    fn take_due(&self, now: Instant) -> Option<(Instant, Box<IoRequest>)> {
        let mut waiting = self.waiting.borrow_mut();
        let (due, _) = waiting.front()?;
        if *due > now {
            return None;
        }
        waiting.pop_front()
    }
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Threads")
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for NullAioChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NullAioChannel")
            .field("disk", &self.disk)
            .field("latency", &self.latency)
            .field("waiting", &self.shared.waiting.borrow().len())
            .finish_non_exhaustive()
    }
}
