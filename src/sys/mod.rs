//! System calls that no crate wraps, each as one function. Any thread.
//!
//! Nothing here decides or retries: a call has one result, and `errno` becomes an [`io::Error`](std::io::Error). Calls
//! that `rustix` has are made through it, where they are needed.

pub(crate) mod block_device;
pub(crate) mod file;
pub(crate) mod ofd_lock;
pub(crate) mod process;
pub(crate) mod socket;
pub(crate) mod vectored;
