//! The sandbox: what it forbids, thread by thread, and that everything works inside.

mod documented;
mod files;
mod filters;
mod lacking;
mod probe;
mod serving;
mod socket;
mod users;
