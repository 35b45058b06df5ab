//! The sandbox forbids what each kind of thread does not need, and everything works inside it.

mod documented;
mod files;
mod filters;
mod lacking;
mod named;
mod probe;
mod serving;
mod socket;
mod users;
