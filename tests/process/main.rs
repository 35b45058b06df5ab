//! The daemon as a process: its command line, sandbox, panics, metrics, idleness, and successors.

mod config;
mod exports;
mod handover;
mod idle;
mod metrics;
mod nodes;
mod options;
mod panics;
mod sandbox;
mod shared_device;
