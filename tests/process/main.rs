//! The daemon as a process: its command line, sandbox, panics, idleness, and successors.

mod config;
mod exports;
mod handover;
mod idle;
mod nodes;
mod options;
mod panics;
mod sandbox;
mod shared_device;
