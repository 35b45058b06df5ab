//! Survives the loss of shared memory that is in use.
//!
//! The frontend can truncate its file at any time, a page can be poisoned (a machine check), and the kernel can run out
//! of huge pages. Our own next access to such a page raises SIGBUS. The handler here replaces the page with zeroes,
//! remembers which page it was, and lets the access continue. Users of a mapping check [`losses`] regularly to find out
//! whether they have lost anything.
//!
//! The kernel must never see these zeroes, because it would write them to the disk. So guest memory is mapped twice.
//! System calls use the mapping that the handler never changes. If a page is lost there, the system call fails with
//! EFAULT.
//!
//! A SIGBUS at any other address is passed to the previous handler. The handler here runs on any thread, takes no lock
//! and makes one system call, `mmap`.

use std::io;
use std::mem;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::sys::status;

/// Maximum number of mappings at the same time. The kernel allows a process fewer than that by default
/// (`vm.max_map_count`). What one frontend may have is limited elsewhere: see `memory::quota`.
const SLOTS: usize = 1 << 16;

/// Number of ranges of lost pages that are remembered per mapping. If more are lost, the whole mapping counts as lost.
const RANGES: usize = 64;

/// Number of ranges of lost pages in all mappings. Further ones make their mapping lost as a whole: each range splits a
/// mapping, and one frontend must not use up all mappings that the kernel allows the process.
const ALL_RANGES: usize = 8192;

static TABLE: [Slot; SLOTS] = [const { Slot::new() }; SLOTS];
/// Index of the first slot that was never used.
static END: AtomicUsize = AtomicUsize::new(0);
/// Number of accesses that found a page lost.
static LOSSES: AtomicUsize = AtomicUsize::new(0);
/// Number of ranges that are remembered in all slots.
static REMEMBERED: AtomicUsize = AtomicUsize::new(0);
/// Held while the table changes. All slots before this index are in use.
static CHANGE: Mutex<usize> = Mutex::new(0);
/// The disposition of SIGBUS before our handler was installed.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// The user of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum User {
    /// The program itself accesses the mapping.
    Ourselves,
    /// Only system calls access the mapping.
    Kernel,
}

/// A mapping, as the handler sees it. Initially all zeroes, so that the table takes no memory.
#[derive(Debug)]
struct Slot {
    /// Odd while the slot changes: a sequence lock whose readers never wait.
    version: AtomicUsize,
    /// First address; 0 in a free slot.
    start: AtomicUsize,
    len: AtomicUsize,
    /// Size of this mapping's pages in bytes.
    page: AtomicUsize,
    kernel: AtomicBool,
    /// Ranges of lost pages: see `pages`.
    lost: [AtomicU64; RANGES],
    /// More ranges are lost than fit in `lost`.
    all_lost: AtomicBool,
}

/// Packs the pages from `first` to before `end`, counted from the start of the mapping. Nothing else is 0.
const fn packed(first: u32, end: u32) -> u64 {
    (first as u64) << 32 | end as u64
}

/// Returns the pages of a packed range. 0 stands for no page.
#[expect(clippy::cast_possible_truncation, reason = "takes the halves")]
const fn pages(packed: u64) -> Range<u32> {
    (packed >> 32) as u32..packed as u32
}

/// Returns the packed range with one more page, if it is empty, has the page already, or ends or begins next to it.
fn with(range: u64, page: u32) -> Option<u64> {
    let Range { start, end } = pages(range);
    if range == 0 {
        Some(packed(page, page + 1))
    } else if (start..end).contains(&page) {
        Some(range)
    } else if page == end {
        Some(packed(start, page + 1))
    } else {
        (page + 1 == start).then(|| packed(page, end))
    }
}

/// The handler's copy of a slot.
#[derive(Clone, Copy, Debug)]
struct Known {
    start: usize,
    len: usize,
    page: usize,
    kernel: bool,
}

impl Slot {
    const fn new() -> Self {
        Self {
            version: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            page: AtomicUsize::new(0),
            kernel: AtomicBool::new(false),
            lost: [const { AtomicU64::new(0) }; RANGES],
            all_lost: AtomicBool::new(false),
        }
    }

    /// Changes the slot. The caller holds `CHANGE`.
    fn set(&self, start: usize, len: usize, page: usize, user: User) {
        self.version.fetch_add(1, Ordering::Relaxed);
        // Release: pairs with the fence in `known`. A reader that sees one of the stores below also sees that the slot
        // is changing.
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.len.store(len, Ordering::Relaxed);
        self.page.store(page, Ordering::Relaxed);
        self.kernel.store(user == User::Kernel, Ordering::Relaxed);
        let lost = self.lost.iter().map(|range| range.swap(0, Ordering::Relaxed));
        let forgotten = lost.filter(|&range| range != 0).count();
        REMEMBERED.fetch_sub(forgotten, Ordering::Relaxed);
        self.all_lost.store(false, Ordering::Relaxed);
        // Release: pairs with the load in `known`. A reader that sees this version sees the stores above.
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Returns the mapping, if it contains the address.
    ///
    /// A slot that is changing cannot contain it, because the thread that accesses an address keeps its mapping.
    fn known(&self, addr: usize) -> Option<Known> {
        // Acquire: pairs with the last store in `set`.
        let version = self.version.load(Ordering::Acquire);
        let known = Known {
            start: self.start.load(Ordering::Relaxed),
            len: self.len.load(Ordering::Relaxed),
            page: self.page.load(Ordering::Relaxed),
            kernel: self.kernel.load(Ordering::Relaxed),
        };
        // Acquire: pairs with the fence in `set`. The loads above come before the one below.
        fence(Ordering::Acquire);
        let stable = version.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == version;
        let inside = addr.checked_sub(known.start)? < known.len;
        (stable && known.start != 0 && inside).then_some(known)
    }

    /// Records that the page at an address is lost. Returns false if there is no room to record it.
    fn lose(&self, known: &Known, addr: usize) -> bool {
        let page = u32::try_from((addr - known.start) / known.page).ok();
        let has_room = REMEMBERED.load(Ordering::Relaxed) < ALL_RANGES;
        let remembered = |entry: &AtomicU64, page| {
            let add = |range| with(range, page).filter(|_| range != 0 || has_room);
            let added = entry.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
            if added == Ok(0) {
                REMEMBERED.fetch_add(1, Ordering::Relaxed);
            }
            added.is_ok()
        };
        let recorded = page
            .filter(|&page| page < u32::MAX)
            .is_some_and(|page| self.lost.iter().any(|entry| remembered(entry, page)));
        if !recorded {
            self.all_lost.store(true, Ordering::Relaxed);
        }
        recorded
    }

    /// Returns the lost address ranges.
    fn lost(&self) -> impl Iterator<Item = Range<usize>> {
        let page = self.page.load(Ordering::Relaxed);
        let start = self.start.load(Ordering::Relaxed);
        let ranges = self.lost.iter().map(|entry| entry.load(Ordering::Relaxed));
        let ranges = ranges.filter(|&range| range != 0).map(move |range| {
            let Range { start: first, end } = pages(range);
            start + first as usize * page..start + end as usize * page
        });
        let all = self.all_lost.load(Ordering::Relaxed);
        ranges.chain(all.then(|| start..start + self.len.load(Ordering::Relaxed)))
    }

    fn has_lost(&self, range: &Range<usize>) -> bool {
        self.lost()
            .any(|lost| lost.start < range.end && range.start < lost.end)
    }
}

/// A mapping that the handler guards. Drop this before unmapping the memory.
#[derive(Debug)]
pub(crate) struct Guarded {
    slot: usize,
}

impl Guarded {
    /// Makes the handler guard a mapping of `len` bytes. Address and length are multiples of `page`.
    ///
    /// # Errors
    /// There are too many mappings, or the handler cannot be installed.
    pub(crate) fn new(start: *mut u8, len: usize, page: usize, user: User) -> io::Result<Self> {
        install()?;
        let mut used = CHANGE.lock().unwrap_or_else(PoisonError::into_inner);
        let is_free = |slot: &usize| TABLE[*slot].start.load(Ordering::Relaxed) == 0;
        let slot = (*used..SLOTS)
            .find(is_free)
            .ok_or_else(|| io::Error::other(format!("more than {SLOTS} mappings of shared memory")))?;
        *used = slot + 1;
        // Release: pairs with the handler's load; the handler may find the slot from now on.
        END.fetch_max(slot + 1, Ordering::Release);
        TABLE[slot].set(start.addr(), len, page, user);
        Ok(Self { slot })
    }

    /// True once an access has found a page of the `len` bytes at `start` lost.
    pub(crate) fn has_lost(&self, start: *const u8, len: usize) -> bool {
        TABLE[self.slot].has_lost(&(start.addr()..start.addr() + len))
    }

    /// Returns the address ranges that accesses have found lost.
    pub(crate) fn lost(&self) -> impl Iterator<Item = Range<usize>> {
        TABLE[self.slot].lost()
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let mut used = CHANGE.lock().unwrap_or_else(PoisonError::into_inner);
        TABLE[self.slot].set(0, 0, 0, User::Ourselves);
        *used = self.slot.min(*used);
    }
}

/// Returns the number of losses so far. If it has changed, the caller should check its own mappings.
///
/// If the number has changed, data read from memory before this call may be zeroes.
#[inline]
pub(crate) fn losses() -> usize {
    // Acquire: the reads of memory that the caller asks about come before this, and it pairs with the Release of the
    // handler, which may have run on another thread: zeroes are seen only together with the new number.
    fence(Ordering::Acquire);
    LOSSES.load(Ordering::Acquire)
}

/// True if one of our own accesses has found a page of the `len` bytes at `start` lost. The caller keeps the bytes
/// mapped.
pub(crate) fn has_lost(start: *const u8, len: usize) -> bool {
    let range = start.addr()..start.addr() + len;
    losses() > 0
        && known_slots()
            .iter()
            .any(|slot| slot.known(range.start).is_some() && slot.has_lost(&range))
}

fn known_slots() -> &'static [Slot] {
    // Acquire: pairs with the Release in `Guarded::new`.
    &TABLE[..END.load(Ordering::Acquire).min(SLOTS)]
}

/// Installs the handler. Later calls do nothing.
///
/// # Errors
/// The system refuses to install the handler.
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
    let addr = || unsafe { (*info).si_addr() }.addr();
    let handled = match code {
        libc::BUS_ADRERR => replace(addr()),
        // Nothing to do for an access by the kernel: its system call fails.
        libc::BUS_MCEERR_AR => is_the_kernels(addr()) || replace(addr()),
        // A page is poisoned, but was not accessed yet.
        libc::BUS_MCEERR_AO => find(addr()).is_some(),
        _ => false,
    };
    if !handled {
        forward(signal, info, context);
    }
}

/// Finds the mapping that contains the address.
fn find(addr: usize) -> Option<(&'static Slot, Known)> {
    known_slots()
        .iter()
        .find_map(|slot| Some((slot, slot.known(addr)?)))
}

fn is_the_kernels(addr: usize) -> bool {
    find(addr).is_some_and(|(_, known)| known.kernel)
}

/// Replaces the page that contains `addr` with zeroes. Returns false if it is not in a guarded mapping for our own
/// accesses, or cannot be replaced.
fn replace(addr: usize) -> bool {
    let Some((slot, known)) = find(addr).filter(|(_, known)| !known.kernel) else {
        return false;
    };
    let offset = addr - known.start;
    let page = known.start + (offset - offset % known.page);
    // Recorded before any zero can be read: see `losses`.
    let len = if slot.lose(&known, page) {
        known.page
    } else {
        // Each range splits the mapping, and the kernel limits the number of mappings. So replace all of the rest.
        known.start + known.len - page
    };
    // Counted even if another thread has recorded the page, because that thread may not have counted it yet.
    LOSSES.fetch_add(1, Ordering::Release);
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: errno is this thread's own.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: the range is part of a mapping that is in the table, and so mapped and used as shared memory only.
    let new = unsafe { libc::mmap(ptr::without_provenance_mut(page), len, protection, flags, -1, 0) };
    // SAFETY: as above; the interrupted code must not see another value.
    unsafe { *libc::__errno_location() = errno };
    new != libc::MAP_FAILED
}

/// Passes the signal to the previous handler.
fn forward(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    type Handler = extern "C" fn(libc::c_int);
    type InfoHandler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
    let previous = PREVIOUS.get();
    let handler = previous
        .map(|p| p.sa_sigaction)
        .filter(|&h| h != libc::SIG_DFL && h != libc::SIG_IGN);
    match (handler, previous.map_or(0, |p| p.sa_flags) & libc::SA_SIGINFO) {
        (None, _) => {
            // SAFETY: resets the disposition; the signal is raised again when this returns.
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
