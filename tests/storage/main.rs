//! Storage against real files, block devices, file systems and QEMU's tools.

#![allow(
    clippy::unwrap_used,
    reason = "a panic is how a test fails, in its helpers too"
)]

mod block_device;
mod durability;
mod growing;
mod io;
mod lock;
mod model;
mod nowait;
mod open;
mod support;
