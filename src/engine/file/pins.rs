//! Guest memory that is registered with the io_uring of an IOThread. That thread only.
//!
//! The kernel then need not find and pin the pages of each request, because all of the memory stays pinned. Pinning takes
//! time, so it happens piece by piece, and the IOThread serves its disks between two pieces. Requests in memory that is
//! not registered, or not yet, are executed as usual.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::rc::{Rc, Weak};

use super::kernel::KernelEngine;
use super::uring::Uring;
use crate::aio::{AioContext, BottomHalf};
use crate::log_limit::LogLimit;
use crate::memory::{GuestMemory, KernelArea};

/// The shortest and the longest piece in bytes. The kernel limits a piece to 1 GiB.
const SHORTEST: usize = 64 << 20;
const LONGEST: usize = 1 << 30;

/// A region has about this many pieces, unless that would make them too short or too long.
const PIECES: usize = 1024;

/// The registered memory of all guests of an IOThread.
pub(in crate::engine) struct Pins {
    ctx: AioContext,
    engine: Rc<KernelEngine<Uring>>,
    regions: RefCell<Vec<Weak<Region>>>,
    log: Rc<LogLimit>,
}

/// The registered memory of a guest. Dropping it ends the registration, unless another queue of the guest uses the memory.
/// Requests in flight are not affected.
#[derive(Debug)]
pub struct PinnedMemory {
    _regions: Vec<Rc<Region>>,
}

/// A region of guest memory.
struct Region {
    area: KernelArea,
    engine: Rc<KernelEngine<Uring>>,
    /// The places of the pieces in the ring's table.
    places: RefCell<Vec<u16>>,
    /// The first byte that is not registered yet.
    at: Cell<usize>,
    /// Registers the next piece.
    next: BottomHalf,
    log: Rc<LogLimit>,
}

impl Pins {
    pub(in crate::engine) fn new(ctx: &AioContext, engine: Rc<KernelEngine<Uring>>) -> Self {
        Self {
            ctx: ctx.clone(),
            engine,
            regions: RefCell::default(),
            log: Rc::default(),
        }
    }

    /// Registers the memory of a guest, which takes a while. Regions that are registered already stay so.
    pub(in crate::engine) fn pin(&self, memory: &GuestMemory) -> PinnedMemory {
        let mut regions = self.regions.borrow_mut();
        regions.retain(|region| region.strong_count() > 0);
        let mut of = |area: KernelArea| {
            let known = regions.iter().filter_map(Weak::upgrade);
            let known = known.into_iter().find(|region| region.area.is_same(&area));
            known.unwrap_or_else(|| {
                let region = Region::new(self, area);
                regions.push(Rc::downgrade(&region));
                region
            })
        };
        PinnedMemory {
            _regions: memory.kernel_areas().map(&mut of).collect(),
        }
    }
}

impl Region {
    fn new(pins: &Pins, area: KernelArea) -> Rc<Self> {
        let region = Rc::new_cyclic(|me: &Weak<Self>| {
            let me = me.clone();
            Self {
                area,
                engine: Rc::clone(&pins.engine),
                places: RefCell::default(),
                at: Cell::new(0),
                next: pins.ctx.bottom_half(move || {
                    if let Some(region) = me.upgrade() {
                        region.register_next();
                    }
                }),
                log: Rc::clone(&pins.log),
            }
        });
        region.next.schedule();
        region
    }

    /// Registers the next piece. If that fails, the rest of the region stays unregistered.
    fn register_next(&self) {
        let (at, whole) = (self.at.get(), self.area.len());
        let len = piece_of(whole).min(whole - at);
        if len == 0 {
            return;
        }
        let start = self.area.as_ptr().wrapping_add(at);
        // SAFETY: the region keeps the memory mapped, and unregisters it before it goes.
        match unsafe { self.engine.queue().register_memory(start, len) } {
            Ok(place) => {
                self.places.borrow_mut().push(place);
                self.at.set(at + len);
                self.next.schedule();
            }
            Err(error) => {
                if let Some(suppressed) = self.log.pass("not registered", &error) {
                    let reason = reason(&error);
                    tracing::warn!(
                        %error,
                        bytes = whole - at,
                        suppressed,
                        "guest memory cannot be registered with io_uring: {reason}. Requests there work without, at a higher \
                         cost"
                    );
                }
            }
        }
    }
}

fn reason(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOMEM) => "it exceeds the limit of locked memory (ulimit -l)",
        Some(libc::EOPNOTSUPP) => "its file cannot be pinned in memory",
        None => "all places in the table are taken",
        _ => "the kernel refuses",
    }
}

/// Returns the length of the pieces of a region of this length.
fn piece_of(whole: usize) -> usize {
    (whole / PIECES).next_power_of_two().clamp(SHORTEST, LONGEST)
}

impl Drop for Region {
    fn drop(&mut self) {
        let mut queue = self.engine.queue();
        for &place in self.places.get_mut().iter() {
            queue.unregister_memory(place);
        }
    }
}

impl fmt::Debug for Pins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pins").finish_non_exhaustive()
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region")
            .field("area", &self.area)
            .field("places", &self.places)
            .finish_non_exhaustive()
    }
}
