//! The queues that the kernel offers, as the engine sees them.

use std::io;
use std::os::fd::{BorrowedFd, RawFd};

use crate::io::IoRequest;

/// A pair of submission and completion queues shared with the kernel. One thread only.
pub(in crate::engine) trait KernelQueue: 'static {
    /// True if requests to files whose file system does not support `RWF_NOWAIT` wait in threads of the kernel, which
    /// are few and common to all files.
    const COMMON_THREADS: bool;

    /// Returns the maximum number of requests in the kernel at once, at least 1.
    fn capacity(&self) -> usize;

    /// Returns the eventfd that signals every completion, unless [`set_signalled`](Self::set_signalled) turned this
    /// off.
    fn event_fd(&self) -> RawFd;

    /// Adds a file and returns the number that identifies it in requests. The file must stay open until it is removed.
    ///
    /// # Errors
    /// There is no room for another file.
    fn add_file(&mut self, file: BorrowedFd<'_>) -> io::Result<u32>;

    /// Removes a file, without waiting for its requests in flight.
    fn remove_file(&mut self, file: u32);

    /// Puts a request for a file into the submission queue. `data` comes back with its completion. Returns false if the
    /// queue is full until the next [`submit`](Self::submit).
    ///
    /// # Safety
    /// Until the completion is reaped, the request must not be moved or changed, and its memory must stay mapped.
    unsafe fn prepare(&mut self, request: &IoRequest, file: u32, data: u64) -> bool;

    /// Submits all prepared requests to the kernel.
    ///
    /// # Errors
    /// The kernel lacks a resource. Requests that it did not take stay prepared.
    fn submit(&mut self) -> io::Result<()>;

    /// Moves the available completions to the end of `done`. Makes no system call unless the kernel requests one.
    fn reap(&mut self, done: &mut Vec<Completion>);

    /// Blocks until a completion is available.
    ///
    /// # Errors
    /// The system call failed or was interrupted.
    fn wait(&mut self) -> io::Result<()>;

    /// Turns the signalling of completions on or off. This is a hint.
    fn set_signalled(&mut self, on: bool);
}

/// The end of a request in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) struct Completion {
    /// The value given to [`KernelQueue::prepare`].
    pub(super) data: u64,
    /// Number of bytes transferred, or a negative errno.
    pub(super) result: i64,
}
