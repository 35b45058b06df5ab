//! Linux AIO (`io_submit`), like QEMU's `aio=native`. For O_DIRECT only, because otherwise `io_submit` blocks.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::kernel_queue::{Completion, KernelQueue};
use crate::io::{IoOp, IoRequest};
use crate::sys::linux_aio::{Context, IOCB_CMD_PREADV, IOCB_CMD_PWRITEV, IOCB_FLAG_RESFD, IoEvent, Iocb};

/// Maximum number of requests in the kernel at once.
const ENTRIES: usize = 256;

/// A Linux AIO context.
pub(in crate::engine) struct LinuxAio {
    context: Context,
    event: EventFd,
    /// Requests that were prepared and not submitted yet.
    prepared: Vec<Iocb>,
    /// Their addresses, for `io_submit`.
    list: Vec<*const Iocb>,
    /// Requests that `io_submit` has refused.
    refused: Vec<Completion>,
}

impl LinuxAio {
    /// Creates a context.
    ///
    /// # Errors
    /// `io_setup` failed.
    pub(in crate::engine) fn new() -> io::Result<Self> {
        let event = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
        Ok(Self {
            context: Context::new(ENTRIES)?,
            event,
            prepared: Vec::new(),
            list: Vec::new(),
            refused: Vec::new(),
        })
    }
}

impl From<&IoEvent> for Completion {
    fn from(event: &IoEvent) -> Self {
        Self {
            data: event.data,
            result: event.res,
        }
    }
}

impl KernelQueue for LinuxAio {
    const COMMON_THREADS: bool = false;

    fn capacity(&self) -> usize {
        ENTRIES
    }

    fn event_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    fn add_file(&mut self, file: BorrowedFd<'_>) -> io::Result<u32> {
        // Each request names its file by the descriptor, and the kernel keeps the file open until the request ends.
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
            // SAFETY: the list and its entries outlive the call, in which the kernel copies them. The caller of
            // `prepare` guarantees the memory of the requests.
            let submitted = unsafe { self.context.submit(&self.list) };
            match submitted {
                Ok(count) => taken += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Err(error),
                Err(error) => {
                    // The error concerns only the first request.
                    let result = -i64::from(error.raw_os_error().unwrap_or(libc::EIO));
                    self.refused.push(Completion {
                        data: self.prepared[taken].data,
                        result,
                    });
                    taken += 1;
                    // The kernel does not signal the end of a refused request.
                    let _ = self.event.write(1);
                }
            }
        };
        self.prepared.drain(..taken);
        result
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.refused);
        let mut take = |event: &IoEvent| done.push(event.into());
        if !self.context.take_shared(&mut take) {
            // If this fails, the completions stay in the kernel.
            let _ = self.context.get_events(0, take);
        }
    }

    fn wait(&mut self) -> io::Result<()> {
        if !self.refused.is_empty() {
            return Ok(());
        }
        self.context
            .get_events(1, |event| self.refused.push(event.into()))
    }

    fn set_signalled(&mut self, _on: bool) {}
}
