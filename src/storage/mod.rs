//! Raw files and block devices. This module knows bytes and scatter-gather lists, but no sectors and no status bytes.
//!
//! Operations block, except those named `try_...`. Any number of threads may call them at the same time.

mod bounce;
mod direct;
mod error;
mod file;
mod flush;
mod format;
mod geometry;
mod kind;
mod limits;
mod lock;
mod lock_bytes;
mod mapped;
mod nowait;
mod options;
mod transfer;
mod written_back;
mod zero;

pub use error::Error;
pub use file::{Gathered, RawFile};
pub use flush::FlushWitness;
pub use format::{foreign_format, foreign_format_of, format_of_footer, format_of_header};
pub use limits::Limits;
pub use lock::{ImageLock, LockError};
pub use lock_bytes::LockMode;
pub use nowait::Nowait;
pub use options::{Content, OpenOptions};
pub(crate) use zero::zero_memory;
