//! Requests as plain data: split into children that complete into their parent, without an allocation once warm.

mod allocations;
mod split;
