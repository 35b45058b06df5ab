//! Memory that a frontend shares with the backend, and waiting for eventfds.

pub(crate) use testkit::memory::{PATIENCE, SharedMemory, memfd, wait_readable};
