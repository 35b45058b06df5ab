//! Resources that belong to an IOThread, and are shared by all of its disks.
//!
//! These are one thread pool, one kernel ring of each kind, and a hint about the last active channel. They stay when a
//! disk is removed, so removing a disk joins no thread and waits for no I/O.

use std::cell::{Cell, OnceCell, RefCell};
use std::fmt;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use super::error::Error;
use super::file::kernel::KernelEngine;
use super::file::linux_aio::LinuxAio;
use super::file::pins::Pins;
use super::file::uring::Uring;
use super::file::writers::{Writer, Writers};
use super::max_batch::MaxBatch;
use super::nbd::{Link, NbdDisk};
use crate::aio::AioContext;
use crate::thread_pool::ThreadPool;

/// The shared resources of one IOThread. That thread only.
pub struct Resources {
    ctx: AioContext,
    pool: ThreadPool,
    writers: Writers,
    uring: OnceCell<Rc<KernelEngine<Uring>>>,
    native: OnceCell<Rc<KernelEngine<LinuxAio>>>,
    /// Guest memory that is registered with the io_uring.
    pins: OnceCell<Rc<Pins>>,
    turns: Rc<Turns>,
    max_batch: Rc<Cell<u64>>,
    /// The links to NBD servers.
    links: RefCell<Vec<Weak<Link>>>,
}

/// The channel that submitted the last batch.
#[derive(Debug, Default)]
pub(super) struct Turns {
    last: Cell<usize>,
    next: Cell<usize>,
}

impl Turns {
    /// Returns a number for a new channel.
    pub(super) fn number(&self) -> usize {
        self.next.set(self.next.get() + 1);
        self.next.get()
    }

    /// Makes this channel the last one. Returns whether it was the last one before.
    pub(super) fn take(&self, number: usize) -> bool {
        self.last.replace(number) == number
    }
}

impl Resources {
    /// Creates the resources of the calling thread, which owns `ctx` and `pool`.
    pub fn new(ctx: &AioContext, pool: ThreadPool) -> Rc<Self> {
        Rc::new(Self {
            ctx: ctx.clone(),
            pool,
            writers: Writers::default(),
            uring: OnceCell::new(),
            native: OnceCell::new(),
            pins: OnceCell::new(),
            turns: Rc::default(),
            max_batch: Rc::default(),
            links: RefCell::default(),
        })
    }

    /// Returns the event loop of the IOThread.
    pub fn ctx(&self) -> &AioContext {
        &self.ctx
    }

    /// Returns the thread pool of the IOThread.
    pub fn pool(&self) -> &ThreadPool {
        &self.pool
    }

    /// Limits the number of requests in one submission to the kernel. 0 is no limit.
    pub fn set_max_batch(&self, max_batch: u64) {
        self.max_batch.set(max_batch);
    }

    /// Returns the limit of a disk's submissions, where `of_disk` is the disk's own.
    pub(super) fn max_batch(&self, of_disk: u64) -> MaxBatch {
        MaxBatch {
            of_disk,
            of_iothread: Rc::clone(&self.max_batch),
        }
    }

    pub(super) fn turns(&self) -> &Rc<Turns> {
        &self.turns
    }

    /// Returns a pool of one worker for one disk's writes.
    pub(super) fn writer(&self) -> Writer {
        self.writers.take(&self.ctx, &self.pool)
    }

    /// Creates the resources that disks added later may need, as far as the kernel supports them, because a sandboxed
    /// thread cannot create them.
    pub fn prepare(&self) {
        // A disk that needs a missing one will be refused.
        let _ = (self.uring(), self.native());
    }

    /// Returns the link to the server of a disk, which the disk's channels share.
    ///
    /// # Errors
    /// See [`Link::new`].
    pub(super) fn link(&self, disk: &Arc<NbdDisk>) -> Result<Rc<Link>, Error> {
        let mut links = self.links.borrow_mut();
        links.retain(|link| link.strong_count() > 0);
        let known = links
            .iter()
            .filter_map(Weak::upgrade)
            .find(|link| link.is_of(disk));
        if let Some(link) = known {
            return Ok(link);
        }
        let link = Link::new(&self.ctx, disk)?;
        links.push(Rc::downgrade(&link));
        Ok(link)
    }

    /// Returns the io_uring of the IOThread, which is created for the first disk that needs it.
    ///
    /// # Errors
    /// The kernel has no resources for it.
    pub(super) fn uring(&self) -> Result<Rc<KernelEngine<Uring>>, Error> {
        shared(&self.uring, || {
            let ring = Uring::new().map_err(Error::IoUring)?;
            KernelEngine::new(&self.ctx, ring)
        })
    }

    /// Returns the registered guest memory of the IOThread.
    ///
    /// # Errors
    /// The kernel has no resources for an io_uring.
    pub(super) fn pins(&self) -> Result<Rc<Pins>, Error> {
        if let Some(pins) = self.pins.get() {
            return Ok(Rc::clone(pins));
        }
        let pins = Rc::new(Pins::new(&self.ctx, self.uring()?));
        Ok(Rc::clone(self.pins.get_or_init(|| pins)))
    }

    /// Returns the Linux AIO context of the IOThread, which is created for the first disk that needs it.
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
