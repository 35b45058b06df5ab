//! The queues that are shared with the kernel.

use std::io;
use std::os::fd::{BorrowedFd, RawFd};

use crate::io::IoRequest;
use crate::storage::RawFile;

/// A pair of submission and completion queues shared with the kernel. One thread only.
pub(in crate::engine) trait KernelQueue: 'static {
    /// Returns the maximum number of requests in the kernel at once, at least 1. A file gets half of them at most.
    fn capacity(&self) -> usize;

    /// Returns whether requests to this file never wait during a submission, nor in threads that all files share.
    /// `nowait`: the file supports requests that fail instead of waiting.
    fn suits(file: &RawFile, nowait: bool) -> bool;

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
    unsafe fn prepare(&mut self, request: &IoRequest, file: Target, data: u64) -> bool;

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

/// A file of a kernel queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) struct Target {
    /// The number from [`KernelQueue::add_file`].
    pub(in crate::engine::file) number: u32,
    /// Requests fail with EAGAIN instead of waiting.
    pub(in crate::engine::file) nowait: bool,
}

/// The end of a request in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) struct Completion {
    /// The value given to [`KernelQueue::prepare`].
    pub(in crate::engine::file) data: u64,
    /// Number of bytes transferred, or a negative errno.
    pub(in crate::engine::file) result: i64,
}
