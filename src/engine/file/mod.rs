//! Requests on files and block devices: in the IOThread if that takes no waiting, else in threads or in the kernel.

pub(super) mod channel;
mod execute;
mod inline;
pub(super) mod kernel;
pub(super) mod linux_aio;
mod merge;
mod share;
#[cfg(test)]
mod testing;
mod threads;
pub(super) mod uring;
pub(super) mod writers;
