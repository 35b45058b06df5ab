//! Many hostile cases, generated from tables. After each of them the daemon is as it was before.
//!
//! Each test has a daemon of its own, so that they run side by side. `bad_messages`, `chain_shapes`,
//! `eventfds`, `memory`, `removal`, `requests`, `rings` and `truncation` contain single cases.

mod arena;
mod bad_messages;
mod chain_shapes;
mod chains;
mod descriptors;
mod eventfds;
mod floods;
mod isolation;
mod memory;
mod messages;
mod random;
mod regions;
mod removal;
mod requests;
mod rings;
mod truncation;
mod values;
mod zeroes;
