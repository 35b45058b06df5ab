//! The system calls and structures of Linux AIO (`linux/aio_abi.h`).

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

pub(crate) const IOCB_CMD_PREADV: u16 = 7;
pub(crate) const IOCB_CMD_PWRITEV: u16 = 8;
pub(crate) const IOCB_FLAG_RESFD: u32 = 1;
const AIO_RING_MAGIC: u32 = 0xa10a_10a1;

/// `struct iocb` on little-endian machines. (On others, `key` and `rw_flags` change places.)
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Iocb {
    pub(crate) data: u64,
    pub(crate) key: u32,
    pub(crate) rw_flags: u32,
    pub(crate) opcode: u16,
    pub(crate) reqprio: i16,
    pub(crate) fd: u32,
    pub(crate) buf: u64,
    pub(crate) nbytes: u64,
    pub(crate) offset: u64,
    pub(crate) reserved: u64,
    pub(crate) flags: u32,
    pub(crate) resfd: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct IoEvent {
    pub(crate) data: u64,
    pub(crate) obj: u64,
    pub(crate) res: i64,
    pub(crate) res2: i64,
}

/// `struct aio_ring`. The kernel maps it at the address that is the context's id, and its events follow it.
#[repr(C)]
struct AioRing {
    id: u32,
    nr: u32,
    head: AtomicU32,
    tail: AtomicU32,
    magic: u32,
    compat_features: u32,
    incompat_features: u32,
    header_length: u32,
}

/// A Linux AIO context. Dropping it waits for its requests.
#[derive(Debug)]
pub(crate) struct Context {
    id: libc::c_ulong,
}

impl Context {
    /// `io_setup`: creates a context for up to this number of requests in the kernel at once.
    pub(crate) fn new(entries: usize) -> io::Result<Self> {
        let mut id: libc::c_ulong = 0;
        // SAFETY: io_setup writes one context id through the pointer.
        count(unsafe { libc::syscall(libc::SYS_io_setup, entries, &raw mut id) })?;
        Ok(Self { id })
    }

    /// `io_submit`: submits requests. Returns the number of requests that the kernel took, counted from the first.
    ///
    /// # Safety
    /// The pointers must be valid during the call. The memory named in the blocks must stay valid until their
    /// completion.
    pub(crate) unsafe fn submit(&self, blocks: &[*const Iocb]) -> io::Result<usize> {
        // SAFETY: the caller promises valid pointers and memory.
        count(unsafe { libc::syscall(libc::SYS_io_submit, self.id, blocks.len(), blocks.as_ptr()) })
    }

    /// `io_getevents`: waits for at least `least` completions, and passes each to `done`.
    pub(crate) fn get_events(&self, least: usize, mut done: impl FnMut(&IoEvent)) -> io::Result<()> {
        let mut events = [IoEvent::default(); 64];
        let mut now = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let timeout = if least == 0 { &raw mut now } else { ptr::null_mut() };
        // SAFETY: io_getevents writes at most as many events as the array holds.
        let count = count(unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.id,
                least,
                events.len(),
                events.as_mut_ptr(),
                timeout,
            )
        })?;
        events[..count].iter().for_each(&mut done);
        Ok(())
    }

    /// Takes completions from the ring that the kernel shares with us. Returns false if the ring has an unknown format.
    pub(crate) fn take_shared(&mut self, mut done: impl FnMut(&IoEvent)) -> bool {
        let ring: *const AioRing = ptr::with_exposed_provenance(self.address());
        // SAFETY: the kernel maps its ring at the context's id, for as long as the context lives.
        let header = unsafe { &*ring };
        if header.magic != AIO_RING_MAGIC || header.incompat_features != 0 {
            return false;
        }
        // SAFETY: `io_event`s follow the header, `nr` of them.
        let events: *const IoEvent = unsafe { ring.byte_add(header.header_length as usize) }.cast();
        // Acquire: pairs with the kernel's release of the tail after it has written the events. Relaxed: the head is
        // ours.
        let (mut head, tail) = (
            header.head.load(Ordering::Relaxed),
            header.tail.load(Ordering::Acquire),
        );
        while head != tail {
            // SAFETY: `head` is below `nr`, and the kernel does not write between head and tail.
            let event = unsafe { events.add(head as usize).read_volatile() };
            done(&event);
            head = (head + 1) % header.nr;
        }
        // Release: pairs with the kernel's read of the head before it reuses the events.
        header.head.store(head, Ordering::Release);
        true
    }

    #[allow(
        clippy::cast_possible_truncation,
        reason = "an unsigned long has the size of an address"
    )]
    fn address(&self) -> usize {
        self.id as usize
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: io_destroy takes a number; it waits for requests in flight.
        let rc = unsafe { libc::syscall(libc::SYS_io_destroy, self.id) };
        debug_assert_eq!(rc, 0);
    }
}

fn count(rc: libc::c_long) -> io::Result<usize> {
    usize::try_from(rc).map_err(|_| io::Error::last_os_error())
}
