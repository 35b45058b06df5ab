//! A vhost-user block backend.

pub mod aio;
pub mod defer;
pub mod iov;
pub mod storage;
mod sync;
pub mod thread_pool;
