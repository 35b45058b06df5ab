//! I/O requests as plain data: what to do, with which memory, and who gets the request back.
//!
//! Everything above and below an engine passes these types around. The module knows no storage, no engine and no guest.

mod iovec;
mod lists;
mod request;
mod split;

pub use iovec::IoVecs;
pub(crate) use iovec::{own, read_volatile_16};
pub use request::{Completer, IoOp, IoRange, IoRequest, Requests};
pub use split::{Split, Splitter};
