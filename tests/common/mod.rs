//! What several integration tests need: processes that end with their test, and a guest to talk to.

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod backend;
pub(crate) mod guest;
pub(crate) mod machine;
pub(crate) mod process;
pub(crate) mod qmp;
