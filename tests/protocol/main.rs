//! The daemon as frontends see it: what the protocol offers, well used.

mod config;
mod data;
mod dirty_log;
mod frontends;
mod inflight;
mod notify;
mod null_aio;
mod resize;
mod session;
mod stop;
