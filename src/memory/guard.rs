//! Mapped files that become shorter while they are used.
//!
//! Whoever shares memory with us can truncate its file at any time; the next access to a page that is gone raises
//! SIGBUS. The handler here puts zero pages in the place of the rest of that mapping, marks the mapping as lost, and
//! has the access go on. Who uses the mapping looks at [`losses`] now and then, and gives up what has lost its memory.
//!
//! A SIGBUS at any other address goes where it went before. The handler runs on any thread, takes no lock and makes
//! one system call, `mmap`.

use std::io;
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::status::status;

/// Mappings at the same time: two whole memory tables, and room for those that requests in flight keep alive.
const SLOTS: usize = 4096;

static TABLE: [Slot; SLOTS] = [const { Slot::new() }; SLOTS];
/// Slots from here on were never used.
static END: AtomicUsize = AtomicUsize::new(0);
/// Counts the accesses that found a mapping lost.
static LOSSES: AtomicUsize = AtomicUsize::new(0);
/// Held while the table changes.
static CHANGE: Mutex<()> = Mutex::new(());
/// What was to be done with a SIGBUS before.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// A mapping, as the handler sees it.
#[derive(Debug)]
struct Slot {
    /// Odd while the slot changes: a sequence lock whose readers never wait.
    version: AtomicUsize,
    /// First address; 0 in a free slot.
    start: AtomicUsize,
    len: AtomicUsize,
    /// Bytes of a page of this mapping.
    page: AtomicUsize,
    lost: AtomicBool,
}

impl Slot {
    const fn new() -> Self {
        Self {
            version: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            page: AtomicUsize::new(1),
            lost: AtomicBool::new(false),
        }
    }

    /// To be called with `CHANGE` held.
    fn set(&self, start: usize, len: usize, page: usize) {
        self.version.fetch_add(1, Ordering::Relaxed);
        // Release: pairs with the fence in `rest`. Who sees one of the stores below sees that the slot changes, too.
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.len.store(len, Ordering::Relaxed);
        self.page.store(page, Ordering::Relaxed);
        self.lost.store(false, Ordering::Relaxed);
        // Release: pairs with the load in `rest`. Who sees this version sees the stores above.
        self.version.fetch_add(1, Ordering::Release);
    }

    /// The part of the mapping from the page of `addr` on, if it has that address: start and length.
    ///
    /// A slot that changes cannot have it: who accesses an address keeps its mapping.
    fn rest(&self, addr: usize) -> Option<(usize, usize)> {
        // Acquire: pairs with the last store in `set`.
        let version = self.version.load(Ordering::Acquire);
        let (start, len) = (
            self.start.load(Ordering::Relaxed),
            self.len.load(Ordering::Relaxed),
        );
        let page = self.page.load(Ordering::Relaxed);
        // Acquire: pairs with the fence in `set`. The loads above come before the one below.
        fence(Ordering::Acquire);
        let stable = version.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == version;
        let offset = addr.checked_sub(start)?;
        if !stable || start == 0 || offset >= len {
            return None;
        }
        let skip = offset - offset % page;
        Some((start + skip, len - skip))
    }
}

/// A mapping that the handler knows. Dropping it makes the handler forget; unmap only afterwards.
#[derive(Debug)]
pub(super) struct Guarded {
    slot: usize,
}

impl Guarded {
    /// Has the handler watch over a mapping of `len` bytes, both a multiple of `page`.
    ///
    /// # Errors
    /// Too many mappings; a handler that cannot be installed.
    pub(super) fn new(start: *mut u8, len: usize, page: usize) -> io::Result<Self> {
        install()?;
        let _change = CHANGE.lock().unwrap_or_else(PoisonError::into_inner);
        let free = |slot: &Slot| slot.start.load(Ordering::Relaxed) == 0;
        let slot = TABLE
            .iter()
            .position(free)
            .ok_or_else(|| io::Error::other(format!("more than {SLOTS} mappings of shared memory")))?;
        // Release: pairs with the load of the handler; it may find the slot from here on.
        END.fetch_max(slot + 1, Ordering::Release);
        TABLE[slot].set(start.addr(), len, page);
        Ok(Self { slot })
    }

    /// True once an access found the file too short.
    pub(super) fn is_lost(&self) -> bool {
        TABLE[self.slot].lost.load(Ordering::Relaxed)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _change = CHANGE.lock().unwrap_or_else(PoisonError::into_inner);
        TABLE[self.slot].set(0, 0, 1);
    }
}

/// Counts what was ever lost: another number than last time says that it is worth a look at one's own mappings.
///
/// What was read from memory before this is zeroes, at worst, if the number is another one.
#[inline]
pub(crate) fn losses() -> usize {
    // Acquire: the reads of memory that the caller asks about come before this, and it pairs with the Release of the
    // handler, which may have run on another thread: zeroes are seen only together with the new number.
    fence(Ordering::Acquire);
    LOSSES.load(Ordering::Acquire)
}

/// Installs the handler, once. Later calls do nothing.
///
/// # Errors
/// Those of `sigaction`.
pub(crate) fn install() -> io::Result<()> {
    static INSTALLED: Mutex<bool> = Mutex::new(false);
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if *installed {
        return Ok(());
    }
    // SAFETY: all zeroes is a valid sigaction: the default action.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: only reads the disposition.
    status(unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut action) })?;
    PREVIOUS.get_or_init(|| action);
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the set is ours.
    unsafe { libc::sigemptyset(&raw mut action.sa_mask) };
    // SAFETY: the handler is async-signal-safe and lives as long as the process.
    status(unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) })?;
    *installed = true;
    Ok(())
}

extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands over a valid siginfo.
    let code = unsafe { (*info).si_code };
    // SAFETY: a SIGBUS with one of these codes has an address.
    let addr = matches!(code, libc::BUS_ADRERR | libc::BUS_MCEERR_AR).then(|| unsafe { (*info).si_addr() });
    if !addr.is_some_and(|addr| replace(addr.addr())) {
        forward(signal, info, context);
    }
}

/// Puts zero pages in the place of a mapping's rest, from the page of `addr` on. False if it is none of ours.
fn replace(addr: usize) -> bool {
    // Acquire: pairs with the Release in `Guarded::new`.
    let known = &TABLE[..END.load(Ordering::Acquire).min(SLOTS)];
    let Some((slot, (start, len))) = known.iter().find_map(|slot| Some((slot, slot.rest(addr)?))) else {
        return false;
    };
    // Before there is a zero to be read: see `losses`.
    slot.lost.store(true, Ordering::Relaxed);
    // Counted also where another thread has marked it, for that one may not have come here yet.
    LOSSES.fetch_add(1, Ordering::Release);
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: errno is this thread's own.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: the range is part of a mapping that is in the table, and so mapped and used as shared memory only.
    let new = unsafe { libc::mmap(ptr::without_provenance_mut(start), len, protection, flags, -1, 0) };
    // SAFETY: as above; the interrupted code must not see another value.
    unsafe { *libc::__errno_location() = errno };
    new != libc::MAP_FAILED
}

/// Does what would have been done without this handler.
fn forward(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    type Handler = extern "C" fn(libc::c_int);
    type InfoHandler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
    let previous = PREVIOUS.get();
    let handler = previous
        .map(|p| p.sa_sigaction)
        .filter(|&h| h != libc::SIG_DFL && h != libc::SIG_IGN);
    match (handler, previous.map_or(0, |p| p.sa_flags) & libc::SA_SIGINFO) {
        (None, _) => {
            // SAFETY: resets the disposition; the signal comes again when this returns.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
            // SAFETY: as above, also where no access repeats it.
            unsafe { libc::raise(signal) };
        }
        (Some(handler), 0) => {
            // SAFETY: sigaction said that this is a handler of this kind.
            let handler: Handler = unsafe { mem::transmute(handler) };
            handler(signal);
        }
        (Some(handler), _) => {
            // SAFETY: as above.
            let handler: InfoHandler = unsafe { mem::transmute(handler) };
            handler(signal, info, context);
        }
    }
}
