//! Requests on files and block devices: in the IOThread if that takes no waiting, else in threads or in the kernel.

pub(super) mod channel;
pub(super) mod execute;
pub(super) mod inline;
mod job;
pub(super) mod kernel;
pub(super) mod linux_aio;
pub(super) mod merge;
pub(super) mod plan;
pub(super) mod share;
pub(super) mod threads;
pub(super) mod uring;
