//! Engines against real files: requirements for all of them, the choice of one, and a stalled file that must not hold
//! up anything else.

#![allow(
    clippy::unwrap_used,
    reason = "a panic is how a test fails, in its helpers too"
)]

mod allocations;
mod choice;
mod disk;
mod each;
mod merge;
mod model;
mod share;
mod split;
mod stall;
#[path = "../storage/support.rs"]
#[allow(dead_code, reason = "shared with the tests of the storage")]
mod support;
mod zeroes;
