//! Shared by the integration tests: processes that end with their test, frontends, and a guest.

#![allow(dead_code, unused_imports, reason = "each test binary uses a part of it")]

pub(crate) mod daemon;
pub(crate) mod frontend;
pub(crate) mod full;
pub(crate) mod guest;
pub(crate) mod inflight;
pub(crate) mod loop_device;
pub(crate) mod machine;
pub(crate) mod memory;
pub(crate) mod process;
pub(crate) mod qmp;
pub(crate) mod random;
pub(crate) mod raw;
pub(crate) mod skip;
pub(crate) mod target;
pub(crate) mod tracer;
pub(crate) mod vm;
