//! The daemon as well-behaved frontends see it.

mod config;
mod data;
mod dirty_log;
mod frontends;
mod inflight;
mod notify;
mod null_aio;
mod positions;
mod registered;
mod resize;
mod session;
mod stop;
mod throttled;
mod wakeups;
