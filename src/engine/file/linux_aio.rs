//! Linux AIO (`io_submit`), as QEMU's `aio=native`: O_DIRECT only, because elsewhere submission blocks.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::kernel::{Completion, KernelQueue};
use crate::io::{IoOp, IoRequest};

/// Requests in the kernel at once.
const ENTRIES: usize = 256;

// `linux/aio_abi.h`.
const IOCB_CMD_PREADV: u16 = 7;
const IOCB_CMD_PWRITEV: u16 = 8;
const IOCB_FLAG_RESFD: u32 = 1;
const AIO_RING_MAGIC: u32 = 0xa10a_10a1;

/// `struct iocb`, as little-endian machines have it (the two fields that we leave 0 change places elsewhere).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    reqprio: i16,
    fd: u32,
    buf: u64,
    nbytes: u64,
    offset: u64,
    reserved: u64,
    flags: u32,
    resfd: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct IoEvent {
    data: u64,
    obj: u64,
    res: i64,
    res2: i64,
}

/// `struct aio_ring`, which the kernel maps at the address that is the context's id; `io_event`s follow it.
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

/// A context.
pub(in crate::engine) struct LinuxAio {
    id: libc::c_ulong,
    event: EventFd,
    /// Prepared, not taken by the kernel.
    prepared: Vec<Iocb>,
    /// Addresses of the above, as `io_submit` takes them.
    list: Vec<*const Iocb>,
    /// What was refused by `io_submit` itself.
    refused: Vec<Completion>,
}

impl LinuxAio {
    /// Makes a context.
    ///
    /// # Errors
    /// Those of `io_setup`.
    pub(in crate::engine) fn new() -> io::Result<Self> {
        let event = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
        let mut id: libc::c_ulong = 0;
        // SAFETY: io_setup writes one context id through the pointer.
        status(unsafe { libc::syscall(libc::SYS_io_setup, ENTRIES, &raw mut id) })?;
        Ok(Self {
            id,
            event,
            prepared: Vec::new(),
            list: Vec::new(),
            refused: Vec::new(),
        })
    }

    /// Takes completions from the ring that the kernel shares; false if it does not look as we know it.
    fn reap_ring(&mut self, done: &mut Vec<Completion>) -> bool {
        let ring: *const AioRing = ptr::with_exposed_provenance(self.address());
        // SAFETY: the kernel maps its ring at the context's id, for as long as the context lives.
        let header = unsafe { &*ring };
        if header.magic != AIO_RING_MAGIC || header.incompat_features != 0 {
            return false;
        }
        // SAFETY: `io_event`s follow the header, `nr` of them.
        let events: *const IoEvent = unsafe { ring.byte_add(header.header_length as usize) }.cast();
        // Acquire: pairs with the kernel's release of the tail after it has written the events. Relaxed: the head is ours.
        let (mut head, tail) = (
            header.head.load(Ordering::Relaxed),
            header.tail.load(Ordering::Acquire),
        );
        while head != tail {
            // SAFETY: `head` is below `nr`, and the kernel does not write between head and tail.
            let event = unsafe { events.add(head as usize).read_volatile() };
            done.push(event.into());
            head = (head + 1) % header.nr;
        }
        // Release: pairs with the kernel's look at the head before it reuses the events.
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

    /// `io_getevents`: waits for at least `least` completions.
    fn get_events(&mut self, least: usize, done: &mut Vec<Completion>) -> io::Result<()> {
        let mut events = [IoEvent::default(); 64];
        let mut now = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let timeout = if least == 0 { &raw mut now } else { ptr::null_mut() };
        // SAFETY: io_getevents writes at most as many events as the array holds.
        let count = status(unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.id,
                least,
                events.len(),
                events.as_mut_ptr(),
                timeout,
            )
        })?;
        done.extend(events[..count].iter().copied().map(Completion::from));
        Ok(())
    }
}

impl From<IoEvent> for Completion {
    fn from(event: IoEvent) -> Self {
        Self {
            data: event.data,
            result: event.res,
        }
    }
}

impl KernelQueue for LinuxAio {
    fn capacity(&self) -> usize {
        ENTRIES
    }

    fn event_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    fn add_file(&mut self, file: BorrowedFd<'_>) -> io::Result<u32> {
        // Each request names its file by the descriptor, and the kernel keeps it until the request is over.
        u32::try_from(file.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput.into())
    }

    fn remove_file(&mut self, _file: u32) {}

    unsafe fn prepare(&mut self, request: &IoRequest, file: u32, data: u64) -> bool {
        let iov = request.whole().as_slice();
        self.prepared.push(Iocb {
            data,
            opcode: if request.op == IoOp::Read {
                IOCB_CMD_PREADV
            } else {
                IOCB_CMD_PWRITEV
            },
            fd: file,
            buf: iov.as_ptr().expose_provenance() as u64,
            nbytes: iov.len() as u64,
            offset: request.offset,
            flags: IOCB_FLAG_RESFD,
            resfd: self.event.as_raw_fd().unsigned_abs(),
            ..Iocb::default()
        });
        true
    }

    fn submit(&mut self) -> io::Result<()> {
        let mut taken = 0;
        let result = loop {
            self.list.clear();
            self.list.extend(self.prepared[taken..].iter().map(ptr::from_ref));
            if self.list.is_empty() {
                break Ok(());
            }
            // SAFETY: the list and what it points to outlive the call, in which the kernel copies them; the memory of
            // the requests is vouched for by the caller of `prepare`.
            let rc =
                unsafe { libc::syscall(libc::SYS_io_submit, self.id, self.list.len(), self.list.as_ptr()) };
            match status(rc) {
                Ok(count) => taken += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Err(error),
                Err(error) => {
                    // It concerns the first one only.
                    let result = -i64::from(error.raw_os_error().unwrap_or(libc::EIO));
                    self.refused.push(Completion {
                        data: self.prepared[taken].data,
                        result,
                    });
                    taken += 1;
                    // Nobody else will.
                    let _ = self.event.write(1);
                }
            }
        };
        self.prepared.drain(..taken);
        result
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.refused);
        if !self.reap_ring(done) {
            // An error leaves the completions where they are.
            let _ = self.get_events(0, done);
        }
    }

    fn wait(&mut self) -> io::Result<()> {
        if !self.refused.is_empty() {
            return Ok(());
        }
        let mut done = Vec::new();
        self.get_events(1, &mut done)?;
        self.refused.append(&mut done);
        Ok(())
    }

    fn set_signalled(&mut self, _on: bool) {}
}

impl Drop for LinuxAio {
    fn drop(&mut self) {
        // SAFETY: io_destroy takes a number; it waits for requests in flight.
        let rc = unsafe { libc::syscall(libc::SYS_io_destroy, self.id) };
        debug_assert_eq!(rc, 0);
    }
}

fn status(rc: libc::c_long) -> io::Result<usize> {
    usize::try_from(rc).map_err(|_| io::Error::last_os_error())
}
