//! Many hostile cases, generated from tables: after each of them the daemon is as it was before.
//!
//! Each test has a daemon of its own, so that they run side by side. The other `hostile_*` tests tell single stories.

mod arena;
mod chains;
mod descriptors;
mod floods;
mod messages;
mod random;
mod regions;
mod values;
