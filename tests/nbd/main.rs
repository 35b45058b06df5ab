//! Disks on NBD servers: qemu-nbd and nbdkit.

#![allow(clippy::cast_possible_truncation, reason = "the numbers are small")]

mod data;
mod engine;
mod fake;
mod hostile;
mod hot;
mod killed;
mod mistakes;
mod outage;
mod probe;
mod resized;
mod rough;
mod server;
mod take_over;
mod tls;
