//! The daemon as a process: its command line, sandbox, panics, metrics, idleness, service managers, and successors.

mod config;
mod exports;
mod handover;
mod hook;
mod idle;
mod metrics;
mod nodes;
mod options;
mod panics;
mod probes;
mod refusals;
mod sandbox;
mod service;
mod shared_device;
mod successors;
mod take_over;
mod versions;
