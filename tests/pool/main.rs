//! The thread pool.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod rlimit;
mod support;
mod thread_pool;
