//! io_uring: one ring for an IOThread, with a table of registered files.
//!
//! A registered eventfd signals completions, except while the IOThread polls. The ring does not use DEFER_TASKRUN, which
//! brought nothing (docs/results.md).
//!
//! The memory of guests can be registered as well. Then the kernel need not find and pin the pages of each request.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use io_uring::register::{Probe, Restriction};
use io_uring::types::Fixed;
use io_uring::{Builder, IoUring, cqueue, opcode, squeue};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::buffers::Buffers;
use super::kernel_queue::{Completion, KernelQueue};
use crate::io::{IoOp, IoRequest};
use crate::lifeline;

/// Number of entries in the submission queue. The completion queue has twice as many.
const ENTRIES: u32 = 256;

/// `IORING_REGISTER_FILES_UPDATE`.
const FILES_UPDATE: u8 = 6;

/// Number of places in the table of registered files, which limits the disks that an IOThread can serve with io_uring.
const FILES: u32 = 256;

/// `IORING_REGISTER_BUFFERS_UPDATE`.
const BUFFERS_UPDATE: u8 = 16;

/// Number of places in the table of registered memory.
const BUFFERS: u16 = 4096;

/// An io_uring.
pub(in crate::engine) struct Uring {
    ring: IoUring,
    event: EventFd,
    /// Free places in the table of registered files.
    free: Vec<u32>,
    /// The registered memory, if the kernel has a table for it.
    buffers: Option<Buffers>,
    /// The kernel executes lists of ranges in registered memory.
    fixed_lists: bool,
}

impl Uring {
    /// Creates a ring without files.
    ///
    /// # Errors
    /// The kernel refuses to create a ring, or its io_uring lacks a feature of Linux 5.6 (`Unsupported`).
    pub(in crate::engine) fn new() -> io::Result<Self> {
        Self::with_entries(ENTRIES)
    }

    fn with_entries(entries: u32) -> io::Result<Self> {
        let (ring, disabled) = build(entries)?;
        let params = ring.params();
        if !(params.is_feature_nodrop()
            && params.is_feature_submit_stable()
            && params.is_feature_rw_cur_pos())
        {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let event = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
        let mut files = vec![-1; FILES as usize];
        // After the places for disks.
        files.extend(lifeline::writer().map(|fd| fd.as_raw_fd()));
        ring.submitter().register_files(&files)?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        let has_buffers = ring.submitter().register_buffers_sparse(BUFFERS.into()).is_ok();
        let fixed_lists = has_buffers && knows_fixed_lists(&ring);
        if disabled {
            restrict(&ring, has_buffers, fixed_lists)?;
        }
        Ok(Self {
            ring,
            event,
            free: (0..FILES).rev().collect(),
            buffers: has_buffers.then(|| Buffers::new(BUFFERS)),
            fixed_lists,
        })
    }
}

/// Returns whether the kernel executes lists of ranges in registered memory (Linux 6.15).
fn knows_fixed_lists(ring: &IoUring) -> bool {
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).is_ok()
        && [opcode::ReadvFixed::CODE, opcode::WritevFixed::CODE]
            .into_iter()
            .all(|code| probe.is_supported(code))
}

/// Restricts the ring to reads and writes of registered files and to the registration of files, and enables it.
///
/// Operations of a ring bypass the seccomp filters.
fn restrict(ring: &IoUring, has_buffers: bool, fixed_lists: bool) -> io::Result<()> {
    let mut opcodes = vec![
        opcode::Read::CODE,
        opcode::Readv::CODE,
        opcode::Write::CODE,
        opcode::Writev::CODE,
    ];
    if has_buffers {
        opcodes.extend([opcode::ReadFixed::CODE, opcode::WriteFixed::CODE]);
    }
    if fixed_lists {
        opcodes.extend([opcode::ReadvFixed::CODE, opcode::WritevFixed::CODE]);
    }
    let fixed = Restriction::sqe_flags_required(squeue::Flags::FIXED_FILE.bits());
    let mut restrictions: Vec<_> = opcodes.into_iter().map(Restriction::sqe_op).collect();
    restrictions.push(fixed);
    restrictions.push(Restriction::register_op(FILES_UPDATE));
    if has_buffers {
        restrictions.push(Restriction::register_op(BUFFERS_UPDATE));
    }
    ring.submitter().register_restrictions(&mut restrictions)?;
    ring.submitter().register_enable_rings()
}

/// Creates the best kind of ring that the kernel supports. Returns true if the ring must still be enabled.
fn build(entries: u32) -> io::Result<(IoUring, bool)> {
    let (plain, mut disabled, mut quick) = (builder(), builder(), builder());
    disabled.setup_r_disabled();
    quick
        .setup_r_disabled()
        .setup_single_issuer()
        .setup_coop_taskrun()
        .setup_taskrun_flag();
    // Linux 6.0 supports all of these flags, and 5.10 only disabled rings.
    for builder in [quick, disabled] {
        match builder.build(entries) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            result => return Ok((result?, true)),
        }
    }
    Ok((plain.build(entries)?, false))
}

fn builder() -> Builder {
    let mut builder = IoUring::builder();
    builder.dontfork();
    builder
}

impl KernelQueue for Uring {
    const COMMON_THREADS: bool = true;

    fn capacity(&self) -> usize {
        // The size of the completion queue, so that it never overflows.
        self.ring.params().cq_entries() as usize
    }

    fn event_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    fn add_file(&mut self, file: BorrowedFd<'_>) -> io::Result<u32> {
        let &place = self
            .free
            .last()
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENFILE))?;
        self.ring
            .submitter()
            .register_files_update(place, &[file.as_raw_fd()])?;
        self.free.pop();
        Ok(place)
    }

    fn remove_file(&mut self, file: u32) {
        // The kernel keeps the file open until its requests in flight end. If this fails, the place stays occupied.
        match self.ring.submitter().register_files_update(file, &[-1]) {
            Ok(_) => self.free.push(file),
            Err(error) => tracing::error!(%error, "cannot remove a file from the io_uring"),
        }
    }

    unsafe fn prepare(&mut self, request: &IoRequest, file: u32, data: u64) -> bool {
        let entry = self.entry(request, Fixed(file)).user_data(data);
        // SAFETY: the caller keeps the request, its list and its memory in place until the completion.
        unsafe { self.ring.submission().push(&entry) }.is_ok()
    }

    fn submit(&mut self) -> io::Result<()> {
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => {
                    result?;
                }
            }
        }
        Ok(())
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        let submission = self.ring.submission();
        let kernel_waits = submission.taskrun() || submission.cq_overflow();
        drop(submission);
        if kernel_waits {
            // Makes the kernel post finished requests. If this fails, the flag stays set, and the next visit retries.
            let _ = self.ring.submit();
        }
        done.extend(self.ring.completion().map(|entry: cqueue::Entry| Completion {
            data: entry.user_data(),
            result: entry.result().into(),
        }));
    }

    fn wait(&mut self) -> io::Result<()> {
        self.ring.submit_and_wait(1).map(drop)
    }

    fn set_signalled(&mut self, on: bool) {
        let completion = self.ring.completion();
        if on {
            completion.enable_eventfd();
        } else {
            completion.disable_eventfd();
        }
    }
}

impl Uring {
    /// Returns whether memory can be registered, if the limits allow it.
    pub(in crate::engine) fn has_memory_table(&self) -> bool {
        self.buffers.is_some()
    }

    /// Registers memory, so that the kernel need not pin the pages of each request. Returns its place in the table.
    ///
    /// # Errors
    /// The kernel has no table, or no room in it, or cannot pin this memory.
    ///
    /// # Safety
    /// The memory must stay mapped until it is unregistered.
    pub(super) unsafe fn register_memory(&mut self, start: *mut u8, len: usize) -> io::Result<u16> {
        let buffers = self.buffers.as_mut().ok_or(io::ErrorKind::Unsupported)?;
        let place = buffers.next_place().ok_or(io::ErrorKind::QuotaExceeded)?;
        let range = libc::iovec {
            iov_base: start.cast(),
            iov_len: len,
        };
        // SAFETY: as for this function.
        unsafe {
            self.ring
                .submitter()
                .register_buffers_update(place.into(), &[range], None)
        }?;
        buffers.add(start.addr(), len);
        Ok(place)
    }

    /// Ends the registration of memory. It stays pinned until the last request in it has ended.
    pub(super) fn unregister_memory(&mut self, place: u16) {
        let none = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        // SAFETY: no memory.
        let result = unsafe {
            self.ring
                .submitter()
                .register_buffers_update(place.into(), &[none], None)
        };
        if let Err(error) = result {
            tracing::error!(%error, "cannot remove memory from the io_uring");
        }
        if let Some(buffers) = &mut self.buffers {
            buffers.remove(place);
        }
    }

    /// Returns the submission entry of a read or write.
    fn entry(&self, request: &IoRequest, file: Fixed) -> squeue::Entry {
        let (iov, offset) = (request.whole().as_slice(), request.offset);
        let is_read = request.op == IoOp::Read;
        let count = u32::try_from(iov.len()).expect("at most IOV_MAX ranges");
        let place = self.buffers.as_ref().and_then(|buffers| place_of(buffers, iov));
        // With a single range, the kernel need not fetch a list.
        if let [range] = iov
            && let Ok(len) = u32::try_from(range.iov_len)
        {
            let base = range.iov_base.cast::<u8>();
            return match (is_read, place) {
                (true, None) => opcode::Read::new(file, base, len).offset(offset).build(),
                (true, Some(place)) => opcode::ReadFixed::new(file, base, len, place)
                    .offset(offset)
                    .build(),
                (false, None) => opcode::Write::new(file, base, len).offset(offset).build(),
                (false, Some(place)) => opcode::WriteFixed::new(file, base, len, place)
                    .offset(offset)
                    .build(),
            };
        }
        let iov = iov.as_ptr();
        match (is_read, place.filter(|_| self.fixed_lists)) {
            (true, None) => opcode::Readv::new(file, iov, count).offset(offset).build(),
            (true, Some(place)) => opcode::ReadvFixed::new(file, iov, count, place)
                .offset(offset)
                .build(),
            (false, None) => opcode::Writev::new(file, iov, count).offset(offset).build(),
            (false, Some(place)) => opcode::WritevFixed::new(file, iov, count, place)
                .offset(offset)
                .build(),
        }
    }
}

/// Returns the place of the registered piece that has all of a list.
fn place_of(buffers: &Buffers, iov: &[libc::iovec]) -> Option<u16> {
    let mut places = iov
        .iter()
        .map(|range| buffers.find(range.iov_base.addr(), range.iov_len));
    let first = places.next()??;
    places.all(|place| place == Some(first)).then_some(first)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use io_uring::types::Fd;

    use super::*;
    use testkit::skip::skipped;

    /// Executes one entry and returns its result.
    fn run(ring: &mut Uring, entry: &squeue::Entry) -> i64 {
        // SAFETY: the entry's memory outlives this function, which waits for the completion.
        unsafe { ring.ring.submission().push(entry) }.unwrap();
        // A refused entry ends the submission.
        while ring.ring.completion().is_empty() {
            ring.wait().unwrap();
        }
        let mut done = Vec::new();
        ring.reap(&mut done);
        done[0].result
    }

    #[test]
    fn a_ring_only_reads_and_writes_registered_files() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(512).unwrap();
        let mut ring = match Uring::new() {
            Ok(ring) => ring,
            Err(error) => return skipped(format_args!("no io_uring: {error}")),
        };
        let place = ring.add_file(file.as_fd()).unwrap();
        let disk = Fixed(place);
        let mut buffer = [0; 512];
        let (memory, fd) = (buffer.as_mut_ptr(), Fd(file.as_raw_fd()));
        assert_eq!(
            run(&mut ring, &opcode::Write::new(disk, memory, 512).build()),
            512
        );
        assert_eq!(run(&mut ring, &opcode::Read::new(disk, memory, 512).build()), 512);
        for denied in [
            opcode::Read::new(fd, memory, 512).build(),
            opcode::Write::new(fd, memory, 512).build(),
            opcode::Nop::new().build(),
            opcode::Fsync::new(disk).build(),
            opcode::OpenAt::new(fd, c"/etc/passwd".as_ptr()).build(),
            opcode::Socket::new(libc::AF_UNIX, libc::SOCK_STREAM, 0).build(),
        ] {
            assert_eq!(run(&mut ring, &denied), -i64::from(libc::EACCES), "{denied:?}");
        }
        assert!(ring.ring.submitter().register_eventfd(0).is_err());
        ring.remove_file(place);
        assert_eq!(
            run(&mut ring, &opcode::Read::new(disk, memory, 512).build()),
            -i64::from(libc::EBADF)
        );
    }

    #[test]
    fn places_of_files_are_recycled_and_limited() {
        let file = tempfile::tempfile().unwrap();
        let mut ring = match Uring::new() {
            Ok(ring) => ring,
            Err(error) => return skipped(format_args!("no io_uring: {error}")),
        };
        for _ in 0..1000 {
            let place = ring.add_file(file.as_fd()).unwrap();
            ring.remove_file(place);
        }
        let places: std::collections::BTreeSet<u32> =
            (0..FILES).map(|_| ring.add_file(file.as_fd()).unwrap()).collect();
        assert_eq!(places.len(), FILES as usize);
        let full = ring.add_file(file.as_fd()).unwrap_err();
        assert_eq!(full.raw_os_error(), Some(libc::ENFILE));
        ring.remove_file(17);
        assert_eq!(ring.add_file(file.as_fd()).unwrap(), 17);
    }
}
