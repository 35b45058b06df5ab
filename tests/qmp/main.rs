//! QMP with real clients on real sockets, honest and hostile.

mod client;
mod daemon;
mod descriptors;
mod disks;
mod events;
mod floods;
mod hot;
mod iothreads;
mod leaving;
mod names;
mod nodes;
mod paths;
mod positions;
mod protocol;
mod python;
mod reopen;
mod replay;
mod schema;
mod secrets;
mod server;
mod set_active;
mod slow;
mod threads;
mod throttled;
mod trace;
