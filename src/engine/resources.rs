//! What belongs to an IOThread, and is shared by all disks that it serves.
//!
//! One thread pool, one kernel ring of each kind, the hint who was last: a disk that is added finds them, and one that is
//! removed leaves them behind. So removing a disk joins no thread and waits for no I/O.

use std::cell::{Cell, OnceCell};
use std::fmt;
use std::rc::Rc;

use super::error::Error;
use super::file::kernel::KernelEngine;
use super::file::linux_aio::LinuxAio;
use super::file::uring::Uring;
use super::file::writers::{Writer, Writers};
use crate::aio::AioContext;
use crate::thread_pool::ThreadPool;

/// What the disks of one IOThread share. Its thread only.
pub struct Resources {
    ctx: AioContext,
    pool: ThreadPool,
    writers: Writers,
    uring: OnceCell<Rc<KernelEngine<Uring>>>,
    native: OnceCell<Rc<KernelEngine<LinuxAio>>>,
    turns: Rc<Turns>,
}

/// Whose batch was the last one.
#[derive(Debug, Default)]
pub(super) struct Turns {
    last: Cell<usize>,
    next: Cell<usize>,
}

impl Turns {
    /// A number for another channel.
    pub(super) fn number(&self) -> usize {
        self.next.set(self.next.get() + 1);
        self.next.get()
    }

    /// It is the turn of this channel; returns whether it was before.
    pub(super) fn take(&self, number: usize) -> bool {
        self.last.replace(number) == number
    }
}

impl Resources {
    /// Makes the resources of the calling thread, whose context `ctx` is; `pool` belongs to it.
    pub fn new(ctx: &AioContext, pool: ThreadPool) -> Rc<Self> {
        Rc::new(Self {
            ctx: ctx.clone(),
            pool,
            writers: Writers::default(),
            uring: OnceCell::new(),
            native: OnceCell::new(),
            turns: Rc::default(),
        })
    }

    /// The event loop of the IOThread.
    pub fn ctx(&self) -> &AioContext {
        &self.ctx
    }

    /// The pool of the IOThread.
    pub fn pool(&self) -> &ThreadPool {
        &self.pool
    }

    pub(super) fn turns(&self) -> &Rc<Turns> {
        &self.turns
    }

    /// A pool of one worker, for one disk's writes.
    pub(super) fn writer(&self) -> Writer {
        self.writers.take(&self.ctx, &self.pool)
    }

    /// Makes what disks that are added later may need, as far as the kernel has it: afterwards the thread may not be
    /// allowed to.
    pub fn prepare(&self) {
        // A disk that needs what is missing is refused.
        let _ = (self.uring(), self.native());
    }

    /// The io_uring of the IOThread, which is made for the first disk that needs it.
    ///
    /// # Errors
    /// The kernel has no resources for it.
    pub(super) fn uring(&self) -> Result<Rc<KernelEngine<Uring>>, Error> {
        shared(&self.uring, || {
            let ring = Uring::new().map_err(Error::IoUring)?;
            KernelEngine::new(&self.ctx, ring)
        })
    }

    /// The Linux AIO context of the IOThread, which is made for the first disk that needs it.
    ///
    /// # Errors
    /// The kernel has no resources for it.
    pub(super) fn native(&self) -> Result<Rc<KernelEngine<LinuxAio>>, Error> {
        shared(&self.native, || {
            let queue = LinuxAio::new().map_err(Error::Native)?;
            KernelEngine::new(&self.ctx, queue)
        })
    }
}

fn shared<T>(cell: &OnceCell<Rc<T>>, make: impl FnOnce() -> Result<T, Error>) -> Result<Rc<T>, Error> {
    if let Some(engine) = cell.get() {
        return Ok(Rc::clone(engine));
    }
    let engine = Rc::new(make()?);
    Ok(Rc::clone(cell.get_or_init(|| engine)))
}

impl fmt::Debug for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resources")
            .field("pool", &self.pool)
            .field("writers", &self.writers)
            .finish_non_exhaustive()
    }
}
