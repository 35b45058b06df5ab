//! Requests on files and block devices. The IOThread executes those that need not wait, and threads or the kernel the
//! rest.

mod buffers;
pub(super) mod channel;
mod execute;
mod flights;
pub(super) mod front;
mod inline;
pub(super) mod kernel;
pub(super) mod kernel_queue;
pub(super) mod linux_aio;
mod merge;
pub(super) mod pins;
mod share;
#[cfg(test)]
mod testing;
pub(super) mod threads;
pub(super) mod uring;
pub(super) mod writers;
