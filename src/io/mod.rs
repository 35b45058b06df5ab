//! I/O requests as plain data: the operation, its memory, and the completer that gets the request back.
//!
//! The layers above and below an engine pass these types around. This module knows no storage, no engine and no guest.

mod iovec;
mod lists;
mod request;
mod split;
mod stages;
mod volatile;
mod zero;

pub use iovec::IoVecs;
pub(crate) use iovec::own;
pub use request::{Completer, IoOp, IoRange, IoRequest, Requests};
pub use split::{Split, Splitter};
pub use stages::Stages;
pub(crate) use volatile::{is_zero, read_volatile_16};
