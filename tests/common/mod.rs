//! What several integration tests need.

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod daemon;
pub(crate) mod frontend;
pub(crate) mod memory;
pub(crate) mod random;
pub(crate) mod raw;
pub(crate) mod target;
pub(crate) mod vm;
